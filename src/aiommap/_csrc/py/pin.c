#include "pin.h"

#include <unistd.h>

void region_retain(struct region *region)
{
    region->references++;
}

void region_release(struct region *region)
{
    if (!region || --region->references)
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
    region->references++;
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

int pin_take_descriptor(struct pin *pin)
{
    Mapping *mapping = pin->mapping;
    for (int i = 0; i < 2 && mapping->pins == 1; i++) {
        int fd = mapping->fds_to_close[i];
        mapping->fds_to_close[i] = -1;
        if (fd >= 0)
            return fd;
    }
    return -1;
}

void pin_end(struct pin *pin)
{
    Mapping *mapping = pin->mapping;
    region_unpin(pin->region);
    if (--mapping->pins == 0)
        for (int i = 0; i < 2; i++) {
            int fd = mapping->fds_to_close[i];
            mapping->fds_to_close[i] = -1;
            if (fd >= 0)
                descriptor_close(fd);
        }
    /* Last, as both of the above may let the GIL go. */
    pin->moved = pin->generation != mapping->generation;
}

void pin_hold(struct pin *pin, Mapping *mapping)
{
    pin_begin(pin, (Mapping *)Py_NewRef((PyObject *)mapping));
}

void pin_let_go(struct pin *pin)
{
    Mapping *mapping = pin->mapping;
    if (!mapping)
        return;
    pin_end(pin);
    pin->mapping = NULL;
    Py_DECREF((PyObject *)mapping);
}

enum meanwhile pin_meanwhile(const struct pin *pin, int64_t offset, int64_t length)
{
    const Mapping *mapping = pin->mapping;
    if (!pin->moved && mapping->moving == INT64_MAX)
        return RANGE_SAME;
    if (!mapping_check_range(mapping, offset, length, mapping->reach))
        return RANGE_GONE;
    return pin->moved ? RANGE_MOVED : RANGE_SAME;
}

static void forget_region(struct region *region)
{
    if (!region)
        return;
    region->references -= region->pins;
    region->pins = 0;
}

/* The threads whose calls were in flight do not exist in this process, and cannot end their
 * pins. */
void forget_pins(Mapping *self)
{
    forget_region(self->region);
    forget_region(self->growable);
    forget_region(self->quiet);
    for (Lease *lease = self->leases; lease; lease = lease->next)
        forget_region(lease->region);
    self->pins = 0;
    for (int i = 0; i < 2; i++) {
        if (self->fds_to_close[i] >= 0)
            close(self->fds_to_close[i]);
        self->fds_to_close[i] = -1;
    }
}
