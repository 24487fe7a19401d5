/* fault_table.h: the table of mappings in which faults of foreign loads and stores are survived.
 *
 * A *foreign* load or store is one that none of our copies makes: NumPy's, a parser's, through an
 * exported buffer. The SIGBUS handler looks its address up here. Knows nothing of Python.
 *
 * How the table is read while it is being changed. Entries live in chunks that are never freed, so
 * a reader may look at any of them at any time. Its owner's version is odd while an entry changes
 * and different afterwards.
 * Invariants.
 *   1  An entry is filled in before anybody has a pointer into its mapping, and emptied before
 *       that mapping goes. So while a thread is at an address of a mapping, which keeps the mapping
 *       alive, the entry that covers the address stands still, also for the handler of the fault
 *       that this thread takes there.
 *   2  So an entry that a reader sees changing is not the one it looks for: it passes on, and never
 *       waits. Nor can it mistake one for another: it believes only what had the same even version
 *       before and after.
 *   3  What an entry points at (damage, growth) belongs to the owner of the mapping, and lives
 *       longer than it. A reader follows the pointer only of the entry that covers its own fault, and that
 *       mapping is alive (fault_table.1).
 *   4  An address range can be another mapping's only after ours was unmapped, which came after
 *       its entry was emptied; a thread that faults there came to know the address later still. So
 *       no fault in a foreign mapping finds an entry of ours.
 */
#ifndef AIOMMAP_WATCHED_H
#define AIOMMAP_WATCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DAMAGE_NONE UINT64_MAX

/* What faults did to one file. */
struct damage { /* atomic; written by survive.c */
    uint64_t first_bad; /* offset of the page that faulted first, or DAMAGE_NONE */
    int error;          /* set before it: why, as an errno number; EFAULT if nobody says */
    uint64_t faults;    /* how many there were */
};

/* What is known of one mapping; it begins with byte 0 of the file. */
struct fault_mapping {           /* constant: a copy */
    uintptr_t base;
    size_t length;         /* 0 in an entry that is free */
    int protection;        /* of mmap(2) */
    struct damage *damage; /* fault_table.3 */
    struct growth *growth; /* fault_table.3; NULL unless a fault beyond the end of file makes it longer */
    struct growth *file;   /* fault_table.3; tells what a page within the file lacks; NULL if nobody can */
};

struct entry;
struct growth;

/* Fill an entry in; NULL when out of memory. */
struct entry *fault_table_add(const struct fault_mapping *mapping);
void fault_table_remove(struct entry *entry);

/* For the handler: find the mapping around an address. Makes no system call and takes no lock. */
bool fault_table_find(uintptr_t address, struct fault_mapping *found);

static inline bool is_damaged(const struct damage *damage)
{
    return __atomic_load_n(&damage->first_bad, __ATOMIC_RELAXED) != DAMAGE_NONE;
}

#endif
