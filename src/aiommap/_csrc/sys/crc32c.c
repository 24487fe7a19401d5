/* crc32c.c: CRC32C by the processor's instruction where there is one, else by tables. */
#include "crc32c.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "little_endian.h"

#define POLYNOMIAL 0x82F63B78u /* Castagnoli's, its bits reversed */
/* Three lanes of this length hide the latency of the instruction; measured best at 4 KiB. */
#define LANE_BYTES 336

static uint32_t table[8][256]; /* constant once made */

__attribute__((constructor)) static void make_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
        table[0][byte] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = table[slice - 1][byte];
            table[slice][byte] = before >> 8 ^ table[0][before & 0xFF];
        }
}

static uint32_t by_table(uint32_t state, const unsigned char *at, size_t length)
{
    for (; length >= 8; length -= 8, at += 8) {
        uint64_t word = load_little64(at) ^ state;
        state = 0;
        for (int byte = 0; byte < 8; byte++)
            state ^= table[7 - byte][word >> 8 * byte & 0xFF];
    }
    for (; length; length--)
        state = state >> 8 ^ table[0][(state ^ *at++) & 0xFF];
    return state;
}

uint32_t crc32c_by_table(uint32_t crc, const void *data, size_t length)
{
    return ~by_table(~crc, data, length);
}

#if defined(__x86_64__)
#define HAS_INSTRUCTION 1
#define WITH_INSTRUCTION __attribute__((target("sse4.2")))
#define CRC_WORD(state, word) __builtin_ia32_crc32di((state), (word))
#define CRC_BYTE(state, byte) __builtin_ia32_crc32qi((uint32_t)(state), (byte))
static bool instruction_works(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__) && defined(__linux__)
#define HAS_INSTRUCTION 1
#define WITH_INSTRUCTION __attribute__((target("+crc")))
#define CRC_WORD(state, word) __builtin_aarch64_crc32cx((uint32_t)(state), (word))
#define CRC_BYTE(state, byte) __builtin_aarch64_crc32cb((uint32_t)(state), (byte))
static bool instruction_works(void) { return getauxval(AT_HWCAP) & (1 << 7); /* CRC32 */ }
#endif

#ifdef HAS_INSTRUCTION
static bool usable;             /* constant once the module is loaded */
static struct crc32c_skip lane; /* constant likewise */

WITH_INSTRUCTION static uint64_t one_lane(uint64_t state, const unsigned char *at, size_t length)
{
    for (; length >= 8; length -= 8, at += 8)
        state = CRC_WORD(state, load_little64(at));
    for (; length; length--)
        state = CRC_BYTE(state, *at++);
    return state;
}

WITH_INSTRUCTION static uint32_t by_instruction(uint64_t state, const unsigned char *at,
                                                size_t length)
{
    for (; length >= 3 * LANE_BYTES; length -= 3 * LANE_BYTES, at += 3 * LANE_BYTES) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < LANE_BYTES; i += 8) {
            state = CRC_WORD(state, load_little64(at + i));
            second = CRC_WORD(second, load_little64(at + LANE_BYTES + i));
            third = CRC_WORD(third, load_little64(at + 2 * LANE_BYTES + i));
        }
        state = crc32c_skip(&lane, crc32c_skip(&lane, (uint32_t)state) ^ (uint32_t)second) ^
                (uint32_t)third;
    }
    return (uint32_t)one_lane(state, at, length);
}

WITH_INSTRUCTION static uint32_t skip_slowly(uint64_t state, size_t zeros)
{
    for (size_t i = 0; i < zeros; i += 8)
        state = CRC_WORD(state, 0);
    return (uint32_t)state;
}

__attribute__((constructor)) static void prepare_lanes(void)
{
    usable = crc32c_skip_make(&lane, LANE_BYTES);
}
#endif

bool crc32c_skip_make(struct crc32c_skip *skip, size_t zeros)
{
#ifdef HAS_INSTRUCTION
    uint32_t of_bit[32];
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    if (!instruction_works())
        return false;
    for (int bit = 0; bit < 32; bit++)
        of_bit[bit] = skip_slowly(UINT32_C(1) << bit, zeros);
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++)
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1)
                    skip->of_byte[byte][value] ^= of_bit[8 * byte + bit];
    return true;
#else
    (void)skip, (void)zeros;
    return false;
#endif
}

uint32_t crc32c(uint32_t crc, const void *data, size_t length)
{
#ifdef HAS_INSTRUCTION
    if (usable)
        return ~by_instruction(~crc, data, length);
#endif
    return ~by_table(~crc, data, length);
}
