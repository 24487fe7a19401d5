/* fault_table.h: the mappings in which foreign loads and stores survive faults.
 *
 * A *foreign* load or store is one that none of our copies makes: NumPy or a parser makes it, through
 * an exported buffer. The SIGBUS handler looks its address up here. Knows nothing of Python.
 *
 * How the handler reads the table while another thread changes it. Entries live in chunks that are
 * never freed, so a reader may look at any entry at any time. The version of an entry is odd while
 * the entry changes, and another even number afterwards.
 *
 * Invariants.
 *   1  An entry is filled in before anybody has a pointer into its mapping, and emptied before the
 *      mapping is unmapped. A thread that is at an address of a mapping keeps the mapping alive. So
 *      the entry that covers the address does not change, also not for the handler of a fault that
 *      this thread takes there.
 *   2  So an entry that changes while a reader looks at it is not the one that the reader wants. The
 *      reader passes on and never waits. It cannot take one entry for another, because it trusts
 *      only what it read between two equal even versions.
 *   3  What an entry points at (damage, growth) belongs to the owner of the mapping, and lives longer
 *      than the mapping. A reader follows the pointers only of the entry that covers its own fault,
 *      and that mapping is alive (fault_table.1).
 *   4  An address range can belong to a foreign mapping only after ours was unmapped, and our entry
 *      was emptied before that. A thread that faults there learned the address later still. So no
 *      fault in a foreign mapping finds an entry of ours.
 */
#ifndef AIOMMAP_FAULT_TABLE_H
#define AIOMMAP_FAULT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DAMAGE_NONE UINT64_MAX

/* What faults did to one file. */
struct damage { /* atomic; written by survive.c */
    uint64_t first_bad; /* offset of the page that faulted first, or DAMAGE_NONE */
    int error;          /* set before first_bad: why, as an errno number; EFAULT if unknown */
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
