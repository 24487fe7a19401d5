/* crc32c.c: CRC32C by the quickest way that the processor has: by folding with its widest carry-less
 * multiplication, by an instruction of its own, or by tables.
 *
 * All compute the remainder of the data as a polynomial. Its bits are reversed: the first bit of a
 * byte, and of a word, is the one of the highest power.
 */
#include "crc32c.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
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

#define DIGITS 4 /* of a number of words, to the base 256 */

/* What `value` words of zeros multiply a state by, at each digit: a power of x. Constant once the
 * module is loaded. */
static uint32_t powers[DIGITS][256];

/* The product of two polynomials modulo CRC32C's; the highest bit is the lowest power. */
static uint32_t multiply(uint32_t one, uint32_t other)
{
    uint32_t product = 0;
    for (; one; one <<= 1) {
        product ^= other & -(one >> 31);
        other = other >> 1 ^ (POLYNOMIAL & -(other & 1));
    }
    return product;
}

__attribute__((constructor)) static void make_powers(void)
{
    uint32_t word = UINT32_C(1) << 30; /* x, to become its 64th power */
    for (int doubled = 0; doubled < 6; doubled++)
        word = multiply(word, word);
    for (int digit = 0; digit < DIGITS; digit++) {
        powers[digit][0] = UINT32_C(1) << 31;
        for (int value = 1; value < 256; value++)
            powers[digit][value] = multiply(powers[digit][value - 1], word);
        word = multiply(powers[digit][255], word);
    }
}

uint32_t crc32c_move(uint32_t state, uint64_t zeros)
{
    uint64_t words = zeros / 8;
    for (int digit = 0; words; digit++, words >>= 8)
        if (words & 0xFF)
            state = multiply(state, powers[digit][words & 0xFF]);
    return state;
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

#if defined(__x86_64__)
#define HAS_FOLDING 1
#define WITH_FOLDING __attribute__((target("sse4.2,avx512f,vpclmulqdq")))
/* Four lanes of 64 bytes are folded at a time; for few bytes the instruction is as quick. */
#define FOLDED_BYTES 256
#define FOLDING_PAYS_BYTES 512

static bool can_fold; /* constant once the module is loaded */

/* The factors that move 128 bits to where they are summed with those `distance` bits behind them:
 * one for their first half, and one for their second. */
struct factors { /* constant likewise */
    uint64_t first, second;
};
static struct factors by_2048, by_512, by_384, by_256, by_128;

/* x to a power, modulo the polynomial, at the place where a product of reversed words has it. */
static uint64_t power_of_x(int power)
{
    uint32_t state = UINT32_C(1) << 31;
    for (; power; power--)
        state = state & 1 ? state >> 1 ^ POLYNOMIAL : state >> 1;
    return (uint64_t)state << 1;
}

static struct factors factors_of(int distance)
{
    return (struct factors){power_of_x(distance + 32), power_of_x(distance - 32)};
}

__attribute__((constructor)) static void prepare_folding(void)
{
    __builtin_cpu_init();
    can_fold = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("vpclmulqdq");
    by_2048 = factors_of(2048);
    by_512 = factors_of(512);
    by_384 = factors_of(384);
    by_256 = factors_of(256);
    by_128 = factors_of(128);
}

WITH_FOLDING static __m512i in_all_lanes(const struct factors *factors)
{
    return _mm512_set_epi64((long long)factors->second, (long long)factors->first,
                            (long long)factors->second, (long long)factors->first,
                            (long long)factors->second, (long long)factors->first,
                            (long long)factors->second, (long long)factors->first);
}

/* Move a sum, and add the data that lies there. */
WITH_FOLDING static __m512i fold(__m512i sum, __m512i factors, __m512i next)
{
    __m512i first = _mm512_clmulepi64_epi128(sum, factors, 0x00);
    __m512i second = _mm512_clmulepi64_epi128(sum, factors, 0x11);
    return _mm512_ternarylogic_epi64(first, second, next, 0x96 /* a ^ b ^ c */);
}

WITH_FOLDING static uint32_t by_folding(uint32_t state, const unsigned char *at, size_t length)
{
    __m512i factors = in_all_lanes(&by_2048), sums[4];
    for (int lane = 0; lane < 4; lane++)
        sums[lane] = _mm512_loadu_si512(at + 64 * lane);
    /* The state of what came before counts as added to the first word. */
    __m512i first = _mm512_inserti32x4(_mm512_setzero_si512(), _mm_cvtsi32_si128((int)state), 0);
    sums[0] = _mm512_xor_si512(sums[0], first);
    for (at += FOLDED_BYTES, length -= FOLDED_BYTES; length >= FOLDED_BYTES;
         at += FOLDED_BYTES, length -= FOLDED_BYTES) {
        sums[0] = fold(sums[0], factors, _mm512_loadu_si512(at));
        sums[1] = fold(sums[1], factors, _mm512_loadu_si512(at + 64));
        sums[2] = fold(sums[2], factors, _mm512_loadu_si512(at + 128));
        sums[3] = fold(sums[3], factors, _mm512_loadu_si512(at + 192));
    }
    factors = in_all_lanes(&by_512);
    for (int lane = 1; lane < 4; lane++)
        sums[0] = fold(sums[0], factors, sums[lane]);
    for (; length >= 64; at += 64, length -= 64)
        sums[0] = fold(sums[0], factors, _mm512_loadu_si512(at));
    /* The first three quarters are moved to the last one, each over its own distance. */
    factors = _mm512_set_epi64(0, 0, (long long)by_128.second, (long long)by_128.first,
                               (long long)by_256.second, (long long)by_256.first,
                               (long long)by_384.second, (long long)by_384.first);
    __m512i moved = fold(sums[0], factors, _mm512_setzero_si512());
    __m128i sum = _mm512_extracti32x4_epi32(sums[0], 3);
    sum = _mm_xor_si128(sum, _mm512_extracti32x4_epi32(moved, 0));
    sum = _mm_xor_si128(sum, _mm512_extracti32x4_epi32(moved, 1));
    sum = _mm_xor_si128(sum, _mm512_extracti32x4_epi32(moved, 2));
    uint64_t rest = CRC_WORD(0, (uint64_t)_mm_cvtsi128_si64(sum));
    rest = CRC_WORD(rest, (uint64_t)_mm_extract_epi64(sum, 1));
    return (uint32_t)one_lane(rest, at, length);
}

/* Copying takes vectors of 256 bits, which more processors can multiply: summed alone, 4 KiB take as
 * long as by the instruction, but copied on the way the sum costs nearly nothing. */
#define WITH_COPYING __attribute__((target("sse4.2,avx2,pclmul,vpclmulqdq")))
#define COPIED_BYTES 128 /* four lanes of 32 bytes */

static bool can_copy_and_fold; /* constant once the module is loaded */
static struct factors by_1024; /* likewise */

__attribute__((constructor)) static void prepare_copying(void)
{
    __builtin_cpu_init();
    can_copy_and_fold = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("avx2") &&
                        __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("vpclmulqdq");
    by_1024 = factors_of(1024);
}

WITH_COPYING static __m256i in_both_lanes(const struct factors *factors)
{
    return _mm256_set_epi64x((long long)factors->second, (long long)factors->first,
                             (long long)factors->second, (long long)factors->first);
}

WITH_COPYING static __m256i copy_vector(unsigned char *to, const unsigned char *at)
{
    __m256i data = _mm256_loadu_si256((const __m256i *)at);
    _mm256_storeu_si256((__m256i *)to, data);
    return data;
}

/* fold, for half as many bits. */
WITH_COPYING static __m256i fold_half(__m256i sum, __m256i factors, __m256i next)
{
    __m256i first = _mm256_clmulepi64_epi128(sum, factors, 0x00);
    __m256i second = _mm256_clmulepi64_epi128(sum, factors, 0x11);
    return _mm256_xor_si256(_mm256_xor_si256(first, second), next);
}

WITH_COPYING static uint32_t copy_folding(uint32_t state, unsigned char *to,
                                          const unsigned char *at, size_t length)
{
    __m256i factors = in_both_lanes(&by_1024), sums[4];
    for (int lane = 0; lane < 4; lane++)
        sums[lane] = copy_vector(to + 32 * lane, at + 32 * lane);
    sums[0] = _mm256_xor_si256(sums[0], _mm256_set_epi64x(0, 0, 0, state));
    for (at += COPIED_BYTES, to += COPIED_BYTES, length -= COPIED_BYTES; length >= COPIED_BYTES;
         at += COPIED_BYTES, to += COPIED_BYTES, length -= COPIED_BYTES) {
        sums[0] = fold_half(sums[0], factors, copy_vector(to, at));
        sums[1] = fold_half(sums[1], factors, copy_vector(to + 32, at + 32));
        sums[2] = fold_half(sums[2], factors, copy_vector(to + 64, at + 64));
        sums[3] = fold_half(sums[3], factors, copy_vector(to + 96, at + 96));
    }
    factors = in_both_lanes(&by_256);
    for (int lane = 1; lane < 4; lane++)
        sums[0] = fold_half(sums[0], factors, sums[lane]);
    for (; length >= 32; length -= 32, at += 32, to += 32)
        sums[0] = fold_half(sums[0], factors, copy_vector(to, at));
    /* The first half is moved to the second one. */
    factors = _mm256_set_epi64x(0, 0, (long long)by_128.second, (long long)by_128.first);
    __m256i moved = fold_half(sums[0], factors, _mm256_setzero_si256());
    __m128i sum = _mm_xor_si128(_mm256_extracti128_si256(sums[0], 1), _mm256_castsi256_si128(moved));
    uint64_t rest = CRC_WORD(0, (uint64_t)_mm_cvtsi128_si64(sum));
    rest = CRC_WORD(rest, (uint64_t)_mm_extract_epi64(sum, 1));
    memcpy(to, at, length);
    return (uint32_t)one_lane(rest, to, length);
}
#endif

bool crc32c_by(enum crc32c_way way, uint32_t *crc, const void *data, size_t length)
{
    switch (way) {
    case CRC32C_TABLE:
        *crc = ~by_table(~*crc, data, length);
        return true;
#ifdef HAS_INSTRUCTION
    case CRC32C_INSTRUCTION:
        if (usable)
            *crc = ~by_instruction(~*crc, data, length);
        return usable;
#endif
#ifdef HAS_FOLDING
    case CRC32C_FOLDING:
        if (!can_fold || length < FOLDED_BYTES)
            return false;
        *crc = ~by_folding(~*crc, data, length);
        return true;
#endif
    default:
        return false;
    }
}

uint32_t crc32c(uint32_t crc, const void *data, size_t length)
{
#ifdef HAS_FOLDING
    if (length >= FOLDING_PAYS_BYTES && can_fold)
        return ~by_folding(~crc, data, length);
#endif
#ifdef HAS_INSTRUCTION
    if (usable)
        return ~by_instruction(~crc, data, length);
#endif
    return ~by_table(~crc, data, length);
}

uint32_t crc32c_copy(uint32_t crc, void *to, const void *from, size_t length)
{
#ifdef HAS_FOLDING
    if (length >= COPIED_BYTES && can_copy_and_fold)
        return ~copy_folding(~crc, to, from, length);
#endif
    memcpy(to, from, length);
    return crc32c(crc, to, length);
}
