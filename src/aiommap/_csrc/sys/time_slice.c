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

void time_slice_grant_woken(struct time_slice *slice, uint64_t tasks)
{
    uint64_t grant = tasks < TIME_SLICE_MAX_NS / TIME_SLICE_WOKEN_NS ? tasks * TIME_SLICE_WOKEN_NS
                                                                      : TIME_SLICE_MAX_NS;
    if (grant < TIME_SLICE_BUDGET_NS)
        grant = TIME_SLICE_BUDGET_NS;
    slice->deadline = monotonic_clock() + (int64_t)grant;
}
