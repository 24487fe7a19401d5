/* log_gather.h: LogGather, where appends join the batch of a log that gathers, and are answered;
 * LogWait, what a task of asyncio awaits for one of them.
 *
 * Where a flush serves hundreds of appends, the time that each takes on the loop limits their number
 * (docs/decisions). The batch itself is Python's: two lists, of which this one knows while they
 * gather (_runtime/batching).
 */
#ifndef AIOMMAP_PY_LOG_GATHER_H
#define AIOMMAP_PY_LOG_GATHER_H

#include "api.h"

extern PyType_Spec log_gather_spec, log_wait_spec;

#endif
