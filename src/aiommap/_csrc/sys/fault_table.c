#include "fault_table.h"

#include <pthread.h>
#include <stdlib.h>

enum { CHUNK = 128 };

struct entry {
    unsigned version;     /* atomic; odd while the mapping changes */
    struct fault_mapping mapping; /* each field atomic; changed under table_lock only */
    struct entry *next_free; /* table_lock */
};

struct chunk {
    struct entry entries[CHUNK];
    struct chunk *next; /* atomic; set once, from NULL */
};

static struct chunk table;             /* the first chunk; the rest hangs on it, for ever */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct chunk *recent = &table;  /* atomic; where the last fault was: growth makes many */
static struct entry *free_entries;     /* table_lock */
static size_t unused = 0;              /* table_lock; entries of the last chunk that were handed out */
static struct chunk *last = &table;    /* table_lock */

/* A forked child has one thread, so nobody there would ever release a lock that another thread of
 * the parent held. */
static void lock_table(void) { pthread_mutex_lock(&table_lock); }
static void unlock_table(void) { pthread_mutex_unlock(&table_lock); }
static pthread_once_t forks = PTHREAD_ONCE_INIT;
static void follow_forks(void) { pthread_atfork(lock_table, unlock_table, unlock_table); }

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

/* Under the lock. */
static struct entry *take_entry(void)
{
    struct entry *entry = free_entries;
    if (entry) {
        free_entries = entry->next_free;
        return entry;
    }
    if (unused == CHUNK) {
        struct chunk *chunk = calloc(1, sizeof *chunk);
        if (!chunk)
            return NULL;
        /* SAFETY: release, so that a reader that sees the pointer sees the zeros, which are free
         * entries. */
        __atomic_store_n(&last->next, chunk, __ATOMIC_RELEASE);
        last = chunk;
        unused = 0;
    }
    return &last->entries[unused++];
}

/* Under the lock, so the version is even and nobody else changes it. */
static void fill(struct entry *entry, const struct fault_mapping *mapping)
{
    unsigned version = entry->version;
    STORE(entry->version, version + 1);
    /* SAFETY: the fence keeps the stores below from being seen before the odd version, the release
     * keeps them from being seen after the next even one. */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    STORE(entry->mapping.base, mapping->base);
    STORE(entry->mapping.length, mapping->length);
    STORE(entry->mapping.protection, mapping->protection);
    STORE(entry->mapping.damage, mapping->damage);
    STORE(entry->mapping.growth, mapping->growth);
    STORE(entry->mapping.file, mapping->file);
    __atomic_store_n(&entry->version, version + 2, __ATOMIC_RELEASE);
}

struct entry *fault_table_add(const struct fault_mapping *mapping)
{
    pthread_once(&forks, follow_forks);
    lock_table();
    struct entry *entry = take_entry();
    if (entry)
        fill(entry, mapping);
    unlock_table();
    return entry;
}

void fault_table_remove(struct entry *entry)
{
    lock_table();
    fill(entry, &(struct fault_mapping){0});
    entry->next_free = free_entries;
    free_entries = entry;
    unlock_table();
}

/* False if the entry was changed meanwhile (fault_table.2). */
static bool read_entry(const struct entry *entry, struct fault_mapping *found)
{
    /* SAFETY: the acquire and the fence keep the loads between the two loads of the version. */
    unsigned version = __atomic_load_n(&entry->version, __ATOMIC_ACQUIRE);
    found->base = LOAD(entry->mapping.base);
    found->length = LOAD(entry->mapping.length);
    found->protection = LOAD(entry->mapping.protection);
    found->damage = LOAD(entry->mapping.damage);
    found->growth = LOAD(entry->mapping.growth);
    found->file = LOAD(entry->mapping.file);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return !(version & 1) && LOAD(entry->version) == version;
}

static bool find_in(const struct chunk *chunk, uintptr_t address, struct fault_mapping *found)
{
    for (size_t i = 0; i < CHUNK; i++) /* the difference wraps to a huge number below base */
        if (read_entry(&chunk->entries[i], found) && address - found->base < found->length)
            return true;
    return false;
}

bool fault_table_find(uintptr_t address, struct fault_mapping *found)
{
    /* SAFETY: chunks are never freed, and `recent` only says where to look first, whichever it
     * is. */
    struct chunk *first = __atomic_load_n(&recent, __ATOMIC_ACQUIRE), *chunk = &table;
    if (find_in(first, address, found))
        return true;
    for (; chunk; chunk = __atomic_load_n(&chunk->next, __ATOMIC_ACQUIRE))
        if (chunk != first && find_in(chunk, address, found)) {
            __atomic_store_n(&recent, chunk, __ATOMIC_RELEASE);
            return true;
        }
    return false;
}
