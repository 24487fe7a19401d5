#include "pool_turns.h"

#include <stdlib.h>

/* Lists. */

static void link_make(struct pool_link *list) { list->next = list->previous = list; }

static bool link_is_empty(const struct pool_link *list) { return list->next == list; }

static void link_append(struct pool_link *list, struct pool_link *link)
{
    link->previous = list->previous;
    link->next = list;
    list->previous->next = link;
    list->previous = link;
}

static void link_remove(struct pool_link *link)
{
    link->previous->next = link->next;
    link->next->previous = link->previous;
}

static struct pool_link *link_take(struct pool_link *list)
{
    struct pool_link *first = list->next;
    link_remove(first);
    return first;
}

void pool_list_make(struct pool_link *list) { link_make(list); }

void pool_list_append(struct pool_link *list, struct pool_job *job) { link_append(list, &job->link); }

bool pool_list_is_empty(const struct pool_link *list) { return link_is_empty(list); }

struct pool_job *pool_list_take(struct pool_link *list) { return (struct pool_job *)link_take(list); }

/* Turns. */

static bool device_has_room(const struct pool_turns *turns, const struct pool_count *device)
{
    return device->running < 2 * (POOL_WIDTH_MAX - turns->running); /* pool_turns.1 */
}

static struct pool_queue *find_turn(const struct pool_turns *turns)
{
    if (turns->running >= turns->width)
        return NULL;
    for (struct pool_link *at = turns->shares.next; at != &turns->shares; at = at->next) {
        struct pool_share *share = (struct pool_share *)at;
        if (share->count.running >= share->limit)
            continue;
        for (struct pool_link *in = share->queues.next; in != &share->queues; in = in->next) {
            struct pool_queue *queue = (struct pool_queue *)in;
            if (device_has_room(turns, queue->device))
                return queue;
        }
    }
    return NULL;
}

bool turns_has_next(const struct pool_turns *turns) { return find_turn(turns); }

bool turns_is_crowded(const struct pool_turns *turns)
{
    return turns->running >= turns->width && turns->width < POOL_WIDTH_MAX &&
           !link_is_empty(&turns->shares);
}

void turns_add(struct pool_turns *turns, struct pool_job *job)
{
    struct pool_queue *queue = job->queue;
    struct pool_share *share = queue->share;
    if (link_is_empty(&queue->jobs)) {
        if (link_is_empty(&share->queues))
            link_append(&turns->shares, &share->link);
        link_append(&share->queues, &queue->link);
    }
    job->queued = true;
    link_append(&queue->jobs, &job->link);
}

/* Queue and share go to the end of their lists if they have more jobs. */
void turns_remove(struct pool_turns *turns, struct pool_job *job)
{
    struct pool_queue *queue = job->queue;
    struct pool_share *share = queue->share;
    job->queued = false;
    link_remove(&job->link);
    link_remove(&queue->link);
    if (!link_is_empty(&queue->jobs))
        link_append(&share->queues, &queue->link);
    link_remove(&share->link);
    if (!link_is_empty(&share->queues))
        link_append(&turns->shares, &share->link);
}

static struct pool_job *begin_first(struct pool_turns *turns, struct pool_queue *queue)
{
    struct pool_job *job = (struct pool_job *)queue->jobs.next;
    turns_remove(turns, job);
    turns->running++;
    queue->share->count.running++;
    queue->device->running++;
    return job;
}

struct pool_job *turns_begin(struct pool_turns *turns)
{
    struct pool_queue *queue = find_turn(turns);
    return queue ? begin_first(turns, queue) : NULL;
}

struct pool_job *turns_begin_second(struct pool_turns *turns, const struct pool_job *first,
                                    unsigned many)
{
    struct pool_queue *queue = first->queue;
    if (!first->start || turns->running < many || turns->running >= turns->width ||
        queue->share->count.running >= queue->share->limit || link_is_empty(&queue->jobs) ||
        !((struct pool_job *)queue->jobs.next)->start || !device_has_room(turns, queue->device))
        return NULL;
    return begin_first(turns, queue);
}

void turns_end(struct pool_turns *turns, const struct pool_job *job)
{
    turns->running--;
    job->queue->share->count.running--;
    job->queue->device->running--;
}

/* Queues. */

static struct pool_count *find_count(struct pool_count *first, uint64_t number)
{
    while (first && first->number != number)
        first = first->next;
    return first;
}

static void add_count(struct pool_count **first, struct pool_count *count, uint64_t number)
{
    count->number = number;
    count->next = *first;
    *first = count;
}

/* Give up one use of a count; whether nobody uses it any more. */
static bool release_count(struct pool_count **first, struct pool_count *count)
{
    if (--count->users)
        return false;
    while (*first != count)
        first = &(*first)->next;
    *first = count->next;
    return true;
}

static struct pool_share *share_of(struct pool_count *count)
{
    return (struct pool_share *)((char *)count - offsetof(struct pool_share, count));
}

static struct pool_share *use_share(struct pool_turns *turns, uint64_t hub)
{
    struct pool_count *known = find_count(turns->hubs, hub);
    if (known)
        return share_of(known);
    struct pool_share *share = calloc(1, sizeof *share);
    if (!share)
        return NULL;
    link_make(&share->link);
    link_make(&share->queues);
    add_count(&turns->hubs, &share->count, hub);
    return share;
}

static struct pool_count *use_device(struct pool_turns *turns, uint64_t number)
{
    struct pool_count *known = find_count(turns->devices, number);
    if (known)
        return known;
    struct pool_count *device = calloc(1, sizeof *device);
    if (device)
        add_count(&turns->devices, device, number);
    return device;
}

void turns_make(struct pool_turns *turns, unsigned width)
{
    link_make(&turns->shares);
    turns->width = width;
}

void turns_free(struct pool_turns *turns)
{
    for (struct pool_count *next, *device = turns->devices; device; device = next) {
        next = device->next;
        free(device);
    }
    for (struct pool_count *next, *hub = turns->hubs; hub; hub = next) {
        next = hub->next;
        free(share_of(hub));
    }
}

bool turns_open(struct pool_turns *turns, struct pool_queue *queue, uint64_t hub, unsigned limit,
                uint64_t device)
{
    link_make(&queue->link);
    link_make(&queue->jobs);
    queue->share = use_share(turns, hub);
    queue->device = queue->share ? use_device(turns, device) : NULL;
    if (queue->share)
        queue->share->count.users++;
    if (queue->device) {
        queue->device->users++;
        queue->share->limit = limit;
    } else if (queue->share && release_count(&turns->hubs, &queue->share->count)) {
        free(queue->share);
    }
    return queue->device;
}

void turns_close(struct pool_turns *turns, struct pool_queue *queue)
{
    if (release_count(&turns->devices, queue->device))
        free(queue->device);
    if (release_count(&turns->hubs, &queue->share->count))
        free(queue->share);
}
