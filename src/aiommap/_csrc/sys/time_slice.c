#include "time_slice.h"

PER_THREAD struct time_slice thread_time_slice;

void time_slice_grant(struct time_slice *slice, uint64_t yields_before)
{
    uint64_t sharers = slice->yields - yields_before;
    int64_t grant = TIME_SLICE_BUDGET_NS / (int64_t)(sharers ? sharers : 1);
    if (grant < TIME_SLICE_MIN_NS)
        grant = TIME_SLICE_MIN_NS;
    slice->deadline = monotonic_clock() + grant;
}
