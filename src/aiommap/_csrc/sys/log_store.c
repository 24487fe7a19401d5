/* log_store.c: see log_store.h. */
#include "log_store.h"

#include <errno.h>
#include <limits.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "atomic_word.h"
#include "file_io.h"
#include "guard.h"

static bool store_word(char *page, enum control_word word, unsigned width, uint64_t value,
                       enum word_operation operation, int64_t tick)
{
    /* SAFETY: constants below CONTROL_BYTES, which the caller has mapped; guarded. */
    struct word_call call = {.at = page + word,
                             .width = width,
                             .operation = operation,
                             .order = ORDER_SEQ_CST,
                             .value = value};
    return guard_word(&call, tick);
}

bool control_store(char *page, enum control_word word, uint64_t value, int64_t tick)
{
    return store_word(page, word, 8, value, WORD_STORE, tick);
}

bool control_wake(char *page, int64_t tick)
{
    if (!store_word(page, CONTROL_FUTEX, 4, 1, WORD_ADD, tick))
        return false;
#ifdef __linux__
    syscall(SYS_futex, page + CONTROL_FUTEX, 1 /* FUTEX_WAKE */, INT_MAX, NULL, NULL, 0);
#endif
    return true;
}

bool control_publish(char *page, const struct published *published, int64_t tick)
{
    /* Positions before sequences: a reader that sees the number of a record finds the record. */
    bool reached = control_store(page, CONTROL_TAIL, published->tail, tick) &&
                   control_store(page, CONTROL_LAST_SEQUENCE, published->last_sequence, tick);
    if (reached && published->durable)
        reached = control_store(page, CONTROL_DURABLE, published->durable, tick) &&
                  control_store(page, CONTROL_DURABLE_SEQUENCE, published->last_sequence, tick);
    return reached && control_wake(page, tick);
}

int segment_sync(int fd, int64_t whole)
{
    /* This does not ask for the times of the file: after such a question the next write changes
     * them, and each commit would write the block of the inode as well. */
    struct file_stat found;
    int error = file_sync(fd, false);
    if (!error)
        error = file_stat(fd, &found);
    if (error)
        return error;
    return found.size < whole ? ENODATA : found.links == 0 ? ESTALE : 0;
}
