/* pin.c: what keeps region and descriptor alive while the GIL is given up. */
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

static void region_pin(struct region *region)
{
    if (!region)
        return;
    region->holders++;
    region->pins++;
}

static void region_unpin(struct region *region)
{
    if (region)
        region->pins--;
    region_release(region);
}

void pin_begin(struct pin *pin, Mapping *mapping)
{
    pin->mapping = mapping;
    pin->region = mapping->region;
    pin->fd = mapping->fd;
    pin->generation = mapping->generation;
    pin->moved = false;
    region_pin(pin->region);
    mapping->pins++;
}

void pin_instead(struct pin *pin, struct region *region)
{
    struct region *before = pin->region;
    region_pin(region);
    pin->region = region;
    region_unpin(before);
}

static void forget_region(struct region *region)
{
    if (!region)
        return;
    region->holders -= region->pins;
    region->pins = 0;
}

/* In a forked child: the threads whose calls were in flight are not there to end them. */
void forget_pins(Mapping *self)
{
    forget_region(self->region);
    forget_region(self->growable);
    forget_region(self->quiet);
    for (Lease *lease = self->leases; lease; lease = lease->next)
        forget_region(lease->region);
    self->pins = 0;
    if (self->fd_to_close >= 0)
        close(self->fd_to_close);
    self->fd_to_close = -1;
}

void pin_end(struct pin *pin)
{
    Mapping *mapping = pin->mapping;
    region_unpin(pin->region);
    if (--mapping->pins == 0 && mapping->fd_to_close >= 0) {
        int fd = mapping->fd_to_close;
        mapping->fd_to_close = -1;
        descriptor_close(fd);
    }
    /* Last, as both of the above may let the GIL go. */
    pin->moved = pin->generation != mapping->generation;
}
