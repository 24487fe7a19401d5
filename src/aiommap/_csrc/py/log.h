/* log.h: the Python objects of a log; _native_log.pyi says what they are for. */
#ifndef AIOMMAP_PY_LOG_H
#define AIOMMAP_PY_LOG_H

#include "api.h"

#include "../sys/log_frame.h"
#include "../sys/log_store.h"
#include "../sys/log_walk.h"

extern PyType_Spec log_cursor_spec, log_writer_spec;
extern PyMethodDef log_functions[];

#endif
