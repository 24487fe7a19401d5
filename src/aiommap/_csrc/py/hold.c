/* hold.c: what keeps region and descriptor alive while the GIL is given up. */
#include "mapping.h"

#include <unistd.h>

void region_release(struct region *region)
{
    if (!region || --region->holders)
        return;
    Py_BEGIN_ALLOW_THREADS /* munmap of a large range takes milliseconds */
    region_unmap(region);
    Py_END_ALLOW_THREADS
}

void descriptor_close(int fd)
{
    Py_BEGIN_ALLOW_THREADS
    close(fd);
    Py_END_ALLOW_THREADS
}

static void region_hold(struct region *region)
{
    if (!region)
        return;
    region->holders++;
    region->held++;
}

static void region_let_go(struct region *region)
{
    if (region)
        region->held--;
    region_release(region);
}

void hold_begin(struct hold *hold, Mapping *mapping)
{
    hold->mapping = mapping;
    hold->region = mapping->region;
    hold->fd = mapping->fd;
    hold->generation = mapping->generation;
    hold->moved = false;
    region_hold(hold->region);
    mapping->in_flight++;
}

void hold_instead(struct hold *hold, struct region *region)
{
    struct region *before = hold->region;
    region_hold(region);
    hold->region = region;
    region_let_go(before);
}

static void forget_region(struct region *region)
{
    if (!region)
        return;
    region->holders -= region->held;
    region->held = 0;
}

/* In a forked child: the threads whose calls were in flight are not there to end them. */
void forget_holds(Mapping *self)
{
    forget_region(self->region);
    forget_region(self->growable);
    forget_region(self->quiet);
    for (Lease *lease = self->leases; lease; lease = lease->next)
        forget_region(lease->region);
    self->in_flight = 0;
    if (self->fd_to_close >= 0)
        close(self->fd_to_close);
    self->fd_to_close = -1;
}

void hold_end(struct hold *hold)
{
    Mapping *mapping = hold->mapping;
    region_let_go(hold->region);
    if (--mapping->in_flight == 0 && mapping->fd_to_close >= 0) {
        int fd = mapping->fd_to_close;
        mapping->fd_to_close = -1;
        descriptor_close(fd);
    }
    /* Last, as both of the above may let the GIL go. */
    hold->moved = hold->generation != mapping->generation;
}
