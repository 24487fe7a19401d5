/* log_writer.h: the LogWriter, and the steps that its calls and its commits share. */
#ifndef AIOMMAP_PY_LOG_WRITER_H
#define AIOMMAP_PY_LOG_WRITER_H

#include <pthread.h>

#include "log.h"

typedef struct {
    PyObject_HEAD

    unsigned long generation; /* constant; in a forked child fork_generation is another */

    /* GIL; written by log_writer.c. */
    char *page;            /* the control file, mapped; NULL once closed */
    pthread_t loop_thread; /* the one that may append inline, if there is a type of receipts */
    PyTypeObject *receipt_type;

    /* By one thread at a time, that of the call under way; written by log_writer.c and Python. */
    int fd;
    uint64_t salt, origin; /* origin: the position of byte 0 of the segment */
    int64_t at, limit;     /* where the next frame comes; where the segment is full */
    int64_t whole;         /* how long the file was when it was entered */
    uint64_t base, sequence, durable;
    uint32_t life;
    char *room;
    size_t room_bytes;
    long waits; /* how often the loop thread had waited, before its last store or one just before that */
    int64_t stored_ns; /* when the last inline store ended */
    int64_t waited_ns; /* when an inline store last had to wait for something; or 0 */
    int64_t granted_until; /* where records may end that are stored without asking Python; or 0 */
    uint64_t inline_appends; /* how many records were stored inline */
} LogWriter;

/* The buffers of one write, taken while the GIL is held and used without it. */
struct layout { /* the caller's own */
    Py_buffer *buffers;
    Py_ssize_t count, taken;
    size_t bytes;
};

/* Return memory to lay a batch out in, or NULL; and free it where one large record needed much. */
char *log_room_for(LogWriter *self, size_t bytes);
void log_trim_room(LogWriter *self);
/* Take the buffers of as many items as fit and belong in one write; false with an exception. */
bool log_take_items(const LogWriter *self, PyObject *items, Py_ssize_t start, int64_t at,
                    uint64_t sequence, struct layout *layout);
void log_release_items(struct layout *layout);
/* Lay out the items that were taken, without the GIL. */
void log_encode_all(const LogWriter *self, char *to, int64_t at, uint64_t sequence,
                    const struct layout *layout);
/* Store; 0 or an errno number. EIO stands for a write that was cut short without a reason. */
int log_put(int fd, const char *from, size_t length, int64_t at);
/* Sync the segment up to a place, and check its file; 0 or an errno number, see segment_sync. */
int log_sync_to(const LogWriter *self, int64_t at);
/* Publish that the log goes up to a place; and whether all before it is durable. */
bool log_publish_to(const LogWriter *self, int64_t at, uint64_t sequence, bool durable);

/* Take note that a commit stored up to a place, and before a sequence; and whether it synced. */
void log_move_on(LogWriter *self, int64_t at, uint64_t sequence, bool durable);

PyObject *log_begin_commit(LogWriter *writer, PyObject *args);

#endif
