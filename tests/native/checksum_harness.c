/* checksum_harness.c: cases of CRC32C, see harness.h. */
#include "harness.h"

#include "crc32c.h"

/* Up to this length, each loop for longer data has run more than once. */
#define LENGTHS 2100
#define WAYS 3

static char *data; /* LENGTHS and a page more */

static void make_data(void)
{
    uint64_t state = 1;
    data = plain;
    EXPECT(LENGTHS + page <= PAGES * page);
    for (size_t i = 0; i < PAGES * page; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        data[i] = (char)(state >> 56);
    }
}

/* CRC32C by its definition. */
static uint32_t bit_by_bit(uint32_t crc, const char *at, size_t length)
{
    crc = ~crc;
    for (; length; length--, at++) {
        crc ^= (unsigned char)*at;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    }
    return ~crc;
}

/* Whether crc32c and each way that the machine has agree. */
static bool all_find(uint32_t expected, uint32_t before, const char *at, size_t length)
{
    bool agree = crc32c(before, at, length) == expected;
    for (int way = 0; way < WAYS; way++) {
        uint32_t found = before;
        if (crc32c_by((enum crc32c_way)way, &found, at, length))
            agree &= found == expected;
    }
    return agree;
}

static void checksum_of_each_length(void)
{
    make_data();
    uint32_t begun[] = {0, 1, 0x80000000u, 0xFFFFFFFFu, 0x12345678u};
    for (size_t length = 0; length <= LENGTHS; length++) {
        uint32_t before = begun[length % 5];
        EXPECT(all_find(bit_by_bit(before, data, length), before, data, length));
    }
}

static void checksum_at_each_address(void)
{
    make_data();
    for (size_t at = 0; at < 64; at++)
        for (size_t length = at % 2; length <= 1100; length += 9)
            EXPECT(all_find(bit_by_bit(7, data + at, length), 7, data + at, length));
}

static void checksum_of_each_bit(void)
{
    make_data();
    size_t length = 1024 + 64 + 9;
    uint32_t before = crc32c(0, data, length);
    for (size_t bit = 0; bit < 8 * length; bit++) {
        data[bit / 8] ^= (char)(1 << bit % 8);
        uint32_t found = bit_by_bit(0, data, length);
        EXPECT(found != before && all_find(found, 0, data, length));
        data[bit / 8] ^= (char)(1 << bit % 8);
    }
}

/* Make a page of data between two pages that nobody may touch; returns the first of the three. */
static char *make_walled_data(void)
{
    char *walled = mmap(NULL, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(walled != MAP_FAILED);
    EXPECT(mprotect(walled + page, page, PROT_READ | PROT_WRITE) == 0);
    make_data();
    memcpy(walled + page, data, page);
    return walled;
}

/* No way touches anything before or behind the data. */
static void checksum_between_walls(void)
{
    char *walled = make_walled_data();
    for (size_t length = 0; length <= LENGTHS && length <= page; length++) {
        const char *last = walled + 2 * page - length;
        EXPECT(all_find(bit_by_bit(0, last, length), 0, last, length));
        EXPECT(all_find(bit_by_bit(0, walled + page, length), 0, walled + page, length));
    }
}

/* Whether a copy is what was copied, and its sum too, and nothing beside it was stored to. */
static bool copy_agrees(char *to, const char *from, size_t length)
{
    enum { WALL = 64 };
    memset(to - WALL, 0x5A, length + 2 * WALL);
    bool same = crc32c_copy(9, to, from, length) == bit_by_bit(9, from, length) &&
                memcmp(to, from, length) == 0;
    for (size_t i = 1; i <= WALL; i++)
        same &= to[-(ptrdiff_t)i] == 0x5A && to[length + i - 1] == 0x5A;
    return same;
}

static void checksum_of_copies(void)
{
    static char to[LENGTHS + 256];
    make_data();
    for (size_t length = 0; length <= LENGTHS; length++)
        EXPECT(copy_agrees(to + 64 + length % 33, data + length % 37, length));
}

static void checksum_of_a_copy_between_walls(void)
{
    static char to[LENGTHS + 256];
    char *walled = make_walled_data();
    for (size_t length = 0; length <= LENGTHS && length <= page; length++) {
        EXPECT(copy_agrees(to + 64, walled + 2 * page - length, length));
        EXPECT(copy_agrees(to + 64, walled + page, length));
    }
}

static void checksum_by_unknown_ways(void)
{
    uint32_t crc = 5;
    EXPECT(!crc32c_by((enum crc32c_way)WAYS, &crc, plain, page) && crc == 5);
}

static const struct test_case cases[] = {
    {"checksum_of_each_length", checksum_of_each_length},
    {"checksum_at_each_address", checksum_at_each_address},
    {"checksum_of_each_bit", checksum_of_each_bit},
    {"checksum_between_walls", checksum_between_walls},
    {"checksum_of_copies", checksum_of_copies},
    {"checksum_of_a_copy_between_walls", checksum_of_a_copy_between_walls},
    {"checksum_by_unknown_ways", checksum_by_unknown_ways},
};

RUN_CASES
