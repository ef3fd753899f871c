/* Activations as 16-bit integers, by codes of 3, 4 or 8 bits: AVX2 multiplies and adds pairs of them, and
   AVX-512's VNNI adds those to a sum with the same instruction. Both give the same bits.

   In every segment of a row, x = step * i with step a power of two and |i| <= 2^15. A bfloat16 has 8 significant bits, so
   whatever is at least 1/256 of the segment's largest is exact; a float32 is rounded by at most 2^-15 of the largest. With
   the codes q as unsigned numbers, or as bytes less 128 and no middle,

       y = s step (sum(q i) - middle sum(i)) + z step sum(i)

   whose sums are exact in 32 bits. A word's nibbles are in the order 0 2 4 6 1 3 5 7, so that shifting it by 4 p and masking
   it leaves the columns (2 p, 2 p + 1), the pair that one instruction multiplies and adds. So do codes of 3 bits, a block
   of 32 columns at a time. Bytes lie in pairs as they are.

   The integers lie as [kp / 8][m][8]: what a block of the weight meets is together. */
#include "qint4.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

enum { DIRECT = 4, M_BLOCK = 48, MOST_ROWS = 3 * M_BLOCK, PAIRS = BLOCK / 2 };
enum { AHEAD_OF_MANY = 1024 /* bytes prefetched ahead of each of several streams */ };

#define UNROLLED _Pragma("GCC unroll 64")
#define TARGET __attribute__((target("avx2,fma,f16c")))

/* A segment of a row as float32; columns beyond the last are 0. */
static inline TARGET void load_segment(const Product *p, ptrdiff_t row, ptrdiff_t k, ptrdiff_t columns, float *to)
{
    ptrdiff_t left = p->w.k - k, given = left < columns ? left < 0 ? 0 : left : columns, at = row * p->w.k + k;
    if (p->is_bf16)
        for (ptrdiff_t i = 0; i < given; i++) to[i] = bf16_to_float(((const uint16_t *)p->x)[at + i]);
    else
        memcpy(to, (const float *)p->x + at, (size_t)given * sizeof *to);
    memset(to + given, 0, (size_t)(columns - given) * sizeof *to);
}

static inline TARGET int sum_of(__m256i eight)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

static inline TARGET uint32_t largest_of(const float *x, ptrdiff_t columns)
{
    const __m256i sign = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256(); /* as integers, of which a NaN's is larger than infinity's */
    for (ptrdiff_t i = 0; i < columns; i += 8)
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), sign));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1)));
}

static inline TARGET void prepare_segment(const Product *p, ptrdiff_t row, ptrdiff_t g)
{
    ptrdiff_t k = g * p->segment, columns = segment_columns(p, g);
    float x[MAX_SEGMENT];
    load_segment(p, row, k, columns, x);
    float step = step_of(largest_of(x, columns), 15);
    __m256 inverse = _mm256_set1_ps(1 / step);
    __m256i sum = _mm256_setzero_si256();
    for (ptrdiff_t i = 0; i < columns; i += BLOCK) {
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
        __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storeu_si128((__m128i *)(p->integers + ((k + i) * p->m + row * BLOCK)), packed);
        sum = _mm256_add_epi32(sum, _mm256_cvtepi16_epi32(packed));
    }
    const int integers = sum_of(sum);
    p->steps[row * p->segments + g] = step;
    p->sums[row * p->segments + g] = step * (float)integers;
    p->starts[row * p->segments + g] = p->w.bits == 8 ? 0 : -middle_of(&p->w) * integers;
}

static TARGET void prepare(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    for (ptrdiff_t row = first; row < last; row++)
        for (ptrdiff_t g = 0; g < p->segments; g++) prepare_segment(p, row, g);
}

static TARGET void store(const Product *p, ptrdiff_t row, ptrdiff_t tile, const float *y)
{
    ptrdiff_t left = p->w.n - tile * ROWS, n = left < ROWS ? left : ROWS, at = row * p->w.n + tile * ROWS;
    if (p->is_bf16)
        for (ptrdiff_t i = 0; i < n; i++) ((uint16_t *)p->y)[at + i] = float_to_bf16(y[i]);
    else
        memcpy((float *)p->y + at, y, (size_t)n * sizeof *y);
}

/* Columns of a block that is taken apart at a time. */
static inline int columns_of(int bits) { return bits == 3 ? K_ALIGN : BLOCK; }
static inline int bytes_of(int bits) { return columns_of(bits) * ROWS * bits / 8; }

/* A shift and a mask for every code of 3 bits take longer, with one row of x, than the bytes that they save. With several
   places, some codes are left where they lie, times 8^place, and summed apart. The largest such sum, of 32 codes of at most
   7 * 64 by |i| <= 2^15 in a segment, is below 2^29. */
enum { PLACES = 3 };
static inline int places_of(int bits, int m) { return bits == 3 && m <= 2 ? PLACES : 1; }
static inline int place_of(int c, int places) { return places == 1 ? 0 : c == 15 ? 2 : c % 5 % 3; }

/* Inlined by order: compilers drop calls of functions that only prefetch. */
static inline __attribute__((always_inline)) void prefetch(const uint8_t *block, int bits, int ahead)
{
    UNROLLED for (int i = 0; i < bytes_of(bits); i += 64)
        _mm_prefetch((const char *)block + ahead + i, _MM_HINT_T0);
}

enum { TILES = 4 /* at most, side by side */, NEVER = M_BLOCK + 1 };

#define NAME(name) name##_avx2
#define VECTOR 32
#define STREAMS(bits, m) ((bits) == 3 ? (m) == 1 ? 2 : 1 : (m) == 1 ? 4 : (m) == 2 ? 2 : 1)
#define BLOCK_TILES 1
#define MANY 6
#define APART_FROM(bits) ((bits) == 3 ? MANY + 1 : (bits) == 4 ? 17 : NEVER) /* as measured */
#define FP16_TO_FLOATS(from) (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from)))
#define BF16_TO_FLOATS(from) \
    (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from))), 16)
#define SIGNED_BYTES(from) _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(from)))
#define ADD_PRODUCTS(sum, codes, pair) ((sum) + (Ints)_mm256_madd_epi16((__m256i)(codes), (__m256i)(pair)))
#include "product_i16.inc"

#undef TARGET
#undef NAME
#undef VECTOR
#undef STREAMS
#undef BLOCK_TILES
#undef MANY
#undef APART_FROM
#undef FP16_TO_FLOATS
#undef BF16_TO_FLOATS
#undef SIGNED_BYTES
#undef ADD_PRODUCTS

#define TARGET \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c,prefer-vector-width=512")))
#define NAME(name) name##_vnni
#define VECTOR 64
#define STREAMS(bits, m) ((bits) == 3 && (m) == 2 ? 2 : 4)
#define BLOCK_TILES 2
#define MANY 8
#define APART_FROM(bits) NEVER
#define FP16_TO_FLOATS(from) (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from)))
#define BF16_TO_FLOATS(from) \
    (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from))), 16)
#define SIGNED_BYTES(from) _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)(from)))
#define ADD_PRODUCTS(sum, codes, pair) \
    (Ints)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(codes), (__m512i)(pair))
#include "product_i16.inc"
#endif
