/* Activations as 16-bit integers, for AVX2's products of pairs, by codes of 3, 4 or 8 bits.

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

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum { DIRECT = 4, M_REGISTERS = 6, M_BLOCK = 48, MOST_ROWS = 3 * M_BLOCK, PAIRS = BLOCK / 2 };
enum { AHEAD_OF_MANY = 1024 /* bytes prefetched ahead of each of several streams */ };

/* 16 rows of a tile, as two vectors. */
typedef struct { __m256i low, high; } Whole;
typedef struct { __m256 low, high; } Real;

/* A segment of a row as float32; columns beyond the last are 0. */
INLINE void load_segment(const Product *p, ptrdiff_t row, ptrdiff_t k, ptrdiff_t columns, float *to)
{
    ptrdiff_t left = p->w.k - k, given = left < columns ? left < 0 ? 0 : left : columns, at = row * p->w.k + k;
    if (p->is_bf16)
        for (ptrdiff_t i = 0; i < given; i++) to[i] = bf16_to_float(((const uint16_t *)p->x)[at + i]);
    else
        memcpy(to, (const float *)p->x + at, (size_t)given * sizeof *to);
    memset(to + given, 0, (size_t)(columns - given) * sizeof *to);
}

INLINE int sum_of(__m256i eight)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

INLINE uint32_t largest_of(const float *x, ptrdiff_t columns)
{
    const __m256i sign = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256(); /* as integers, of which a NaN's is larger than infinity's */
    for (ptrdiff_t i = 0; i < columns; i += 8)
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), sign));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1)));
}

INLINE void prepare_segment(const Product *p, ptrdiff_t row, ptrdiff_t g)
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
    p->steps[row * p->segments + g] = step;
    p->integer_sums[row * p->segments + g] = sum_of(sum);
}

static TARGET void prepare(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    for (ptrdiff_t row = first; row < last; row++)
        for (ptrdiff_t g = 0; g < p->segments; g++) prepare_segment(p, row, g);
}

INLINE __m256 scales8(const Weight *w, const uint16_t *from)
{
    __m128i bits = _mm_loadu_si128((const __m128i *)from);
    if (w->scales_are_fp16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

INLINE Real scales16(const Weight *w, const uint16_t *from)
{
    return (Real){scales8(w, from), scales8(w, from + 8)};
}

INLINE __m256i pair(const int16_t *integers)
{
    int32_t both;
    memcpy(&both, integers, sizeof both);
    return _mm256_set1_epi32(both);
}

/* The empty statement keeps compilers from adding in another order, for which there are too few registers. */
INLINE void dot(Whole *sum, Whole codes, __m256i x)
{
    sum->low = _mm256_add_epi32(sum->low, _mm256_madd_epi16(codes.low, x));
    sum->high = _mm256_add_epi32(sum->high, _mm256_madd_epi16(codes.high, x));
    __asm__("" : "+x"(sum->low), "+x"(sum->high));
}

INLINE __m256i eight_rows(const int8_t *pairs)
{
    return _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)pairs));
}

/* Columns of a block that is taken apart at a time. */
INLINE int columns_of(int bits) { return bits == 3 ? K_ALIGN : BLOCK; }

/* A shift and a mask for every code of 3 bits take longer, with one row of x, than the bytes that they save. With several
   places, some codes are left where they lie, times 8^place, and summed apart. The largest such sum, of 32 codes of at most
   7 * 64 by |i| <= 2^15 in a segment, is below 2^29. */
enum { PLACES = 3 };
INLINE int places_of(int bits, int m) { return bits == 3 && m <= 2 ? PLACES : 1; }
INLINE int place_of(int c, int places) { return places == 1 ? 0 : c == 15 ? 2 : c % 5 % 3; }

INLINE __m256i bits_of(__m256i words, int shift, int mask)
{
    if (shift) words = _mm256_srli_epi16(words, shift);
    return _mm256_and_si256(words, _mm256_set1_epi16((short)mask));
}

/* The pair of columns c of 3 bits, of 8 rows, times 8^place; the words of the other 8 lie between theirs. */
INLINE __m256i pairs_of_3(const __m256i *block, int c, int places)
{
    const int place = place_of(c, places), at = 3 * place;
    if (c < 15) return bits_of(_mm256_load_si256(block + c / 5 * 2), c % 5 * 3 - at, 7 << at);
    __m256i first = bits_of(_mm256_load_si256(block), 15 - at, 1 << at);
    __m256i second = bits_of(_mm256_load_si256(block + 2), 14 - at, 2 << at);
    return _mm256_or_si256(_mm256_or_si256(first, second), bits_of(_mm256_load_si256(block + 4), 13 - at, 4 << at));
}

/* The pair of columns c of a block. */
INLINE Whole codes_of(const uint8_t *block, int bits, int c, int places)
{
    const __m256i *halves = (const __m256i *)block;
    if (bits == 3) return (Whole){pairs_of_3(halves, c, places), pairs_of_3(halves + 1, c, places)};
    const int8_t *bytes = (const int8_t *)block + c * 2 * ROWS;
    if (bits == 8) return (Whole){eight_rows(bytes), eight_rows(bytes + ROWS)};
    const __m256i mask = _mm256_set1_epi16(15);
    __m256i low = _mm256_load_si256(halves), high = _mm256_load_si256(halves + 1);
    if (c) low = _mm256_srli_epi16(low, 4 * c), high = _mm256_srli_epi16(high, 4 * c);
    if (c == PAIRS - 1) return (Whole){low, high};
    return (Whole){_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)};
}

INLINE void prefetch(const uint8_t *block, int bits, int ahead)
{
    for (int i = 0; i < columns_of(bits) * ROWS * bits / 8; i += 64)
        _mm_prefetch((const char *)block + ahead + i, _MM_HINT_T0);
}

/* total + s step (sum(q i) - middle sum(i)) + z step sum(i), of the segment g of a row of x. */
INLINE void add_scaled(const Product *p, ptrdiff_t row, ptrdiff_t g, Whole sum, Real s, Real z, Real *total)
{
    float step = p->steps[row * p->segments + g];
    int integers = p->integer_sums[row * p->segments + g];
    __m256i middle = _mm256_set1_epi32(p->w.bits == 8 ? 0 : middle_of(&p->w) * integers);
    __m256 steps = _mm256_set1_ps(step), all = _mm256_set1_ps(step * (float)integers);
    __m256 low = _mm256_mul_ps(steps, _mm256_cvtepi32_ps(_mm256_sub_epi32(sum.low, middle)));
    __m256 high = _mm256_mul_ps(steps, _mm256_cvtepi32_ps(_mm256_sub_epi32(sum.high, middle)));
    total->low = _mm256_fmadd_ps(s.low, low, _mm256_fmadd_ps(z.low, all, total->low));
    total->high = _mm256_fmadd_ps(s.high, high, _mm256_fmadd_ps(z.high, all, total->high));
}

INLINE void store(const Product *p, ptrdiff_t row, ptrdiff_t tile, Real total)
{
    ptrdiff_t left = p->w.n - tile * ROWS, n = left < ROWS ? left : ROWS, at = row * p->w.n + tile * ROWS;
    float y[ROWS];
    _mm256_storeu_ps(y, total.low);
    _mm256_storeu_ps(y + 8, total.high);
    if (p->is_bf16)
        for (ptrdiff_t i = 0; i < n; i++) ((uint16_t *)p->y)[at + i] = float_to_bf16(y[i]);
    else
        memcpy((float *)p->y + at, y, (size_t)n * sizeof *y);
}

static const Whole NO_WHOLE;
static const Real NO_REAL;

INLINE Whole sum_of_places(const Whole *sums, int places)
{
    Whole sum = sums[0];
    for (int place = 1; place < places; place++) {
        sum.low = _mm256_add_epi32(sum.low, _mm256_srai_epi32(sums[place].low, 3 * place));
        sum.high = _mm256_add_epi32(sum.high, _mm256_srai_epi32(sums[place].high, 3 * place));
    }
    return sum;
}

/* Some tiles at once, each so far `apart` from the next, for up to DIRECT rows of x; `bits`, `m` and `tiles` are constants
   after inlining. Codes go straight into products. Memory answers faster to several streams than to one. */
INLINE void direct(const Product *p, ptrdiff_t tile, int bits, int m, int tiles, ptrdiff_t apart)
{
    const Weight *w = &p->w;
    const ptrdiff_t tile_bytes = w->kp * ROWS * bits / 8, stride = apart * tile_bytes;
    const int columns = columns_of(bits), places = places_of(bits, m);
    const uint8_t *block = (const uint8_t *)w->words + tile * tile_bytes;
    Real total[DIRECT][DIRECT];
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < m; i++) total[t][i] = NO_REAL;
    for (ptrdiff_t g = 0; g < p->segments; g++) {
        const int16_t *x = p->integers + g * p->segment * m;
        Whole sum[DIRECT][DIRECT][PLACES];
        for (int t = 0; t < tiles; t++)
            for (int i = 0; i < m; i++)
                for (int place = 0; place < places; place++) sum[t][i][place] = NO_WHOLE;
        for (ptrdiff_t k = 0; k < segment_columns(p, g); k += columns, block += columns * ROWS * bits / 8)
            for (int t = 0; t < tiles; t++) {
                prefetch(block + t * stride, bits, tiles > 1 ? AHEAD_OF_MANY : AHEAD);
#pragma GCC unroll 16
                for (int c = 0; c < columns / 2; c++) {
                    Whole codes = codes_of(block + t * stride, bits, c, places);
                    const int16_t *at = x + (k + c / PAIRS * BLOCK) * m + c % PAIRS * 2;
                    for (int i = 0; i < m; i++) dot(&sum[t][i][place_of(c, places)], codes, pair(at + i * BLOCK));
                }
            }
        for (int t = 0; t < tiles; t++) {
            const uint16_t *scales = scales_at(w, tile + t * apart, g * p->segment);
            Real s = scales16(w, scales), z = scales16(w, scales + ROWS);
            for (int i = 0; i < m; i++) add_scaled(p, i, g, sum_of_places(sum[t][i], places), s, z, &total[t][i]);
        }
    }
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < m; i++) store(p, i, tile + t * apart, total[t][i]);
}

/* A segment's codes times `m` rows from `row` on, a constant after inlining. */
INLINE void rows(const Product *p, ptrdiff_t row, int m, ptrdiff_t g, const Whole *codes, Real s, Real z, Real *total)
{
    const int16_t *x = p->integers + g * p->segment * p->m + row * BLOCK;
    Whole sum[M_REGISTERS];
    for (int i = 0; i < m; i++) sum[i] = NO_WHOLE;
    for (ptrdiff_t b = 0; b < segment_columns(p, g) / BLOCK; b++, x += p->m * BLOCK, codes += PAIRS)
        for (int c = 0; c < PAIRS; c++)
            for (int i = 0; i < m; i++) dot(&sum[i], codes[c], pair(x + i * BLOCK + 2 * c));
    for (int i = 0; i < m; i++) add_scaled(p, row + i, g, sum[i], s, z, &total[i]);
}

/* A tile for `m` rows of x from row `from`: a segment is taken apart once and stays in the first cache. */
INLINE void blocked(const Product *p, ptrdiff_t tile, int bits, ptrdiff_t from, ptrdiff_t m)
{
    const Weight *w = &p->w;
    const int columns = columns_of(bits);
    Real total[M_BLOCK];
    Whole codes[MAX_SEGMENT / 2];
    const uint8_t *block = (const uint8_t *)w->words + tile * w->kp * ROWS * bits / 8;
    for (ptrdiff_t i = 0; i < m; i++) total[i] = NO_REAL;
    for (ptrdiff_t g = 0; g < p->segments; g++) {
        for (ptrdiff_t k = 0; k < segment_columns(p, g); k += columns, block += columns * ROWS * bits / 8) {
            prefetch(block, bits, AHEAD);
#pragma GCC unroll 16
            for (int c = 0; c < columns / 2; c++) codes[k / 2 + c] = codes_of(block, bits, c, 1);
        }
        const uint16_t *scales = scales_at(w, tile, g * p->segment);
        Real s = scales16(w, scales), z = scales16(w, scales + ROWS);
        ptrdiff_t i = 0;
        for (; i + M_REGISTERS <= m; i += M_REGISTERS) rows(p, from + i, M_REGISTERS, g, codes, s, z, total + i);
        for (; i + 2 <= m; i += 2) rows(p, from + i, 2, g, codes, s, z, total + i);
        if (i < m) rows(p, from + i, 1, g, codes, s, z, total + i);
    }
    for (ptrdiff_t i = 0; i < m; i++) store(p, from + i, tile, total[i]);
}

/* Tiles as `tiles` streams, each of which runs on from one tile into the next: nothing waits at a tile's end. Returns the
   first that is left over. */
INLINE ptrdiff_t streams(const Product *p, int bits, int m, int tiles, ptrdiff_t tile, ptrdiff_t last)
{
    ptrdiff_t apart = (last - tile) / tiles;
    for (ptrdiff_t i = 0; i < apart; i++) direct(p, tile + i, bits, m, tiles, apart);
    return tile + apart * tiles;
}

INLINE void tiles_of(const Product *p, int bits, ptrdiff_t tile, ptrdiff_t last)
{
    /* As many as there are registers for. */
    if (p->m == 1) tile = streams(p, bits, 1, bits == 3 ? 2 : 4, tile, last);
    if (p->m == 2) tile = streams(p, bits, 2, bits == 3 ? 1 : 2, tile, last);
    if (p->m == 3)
        for (; tile < last; tile++) direct(p, tile, bits, 3, 1, 1);
    if (p->m == 4)
        for (; tile < last; tile++) direct(p, tile, bits, 4, 1, 1);
    for (; tile < last; tile++)
        for (ptrdiff_t from = 0; from < p->m; from += M_BLOCK)
            blocked(p, tile, bits, from, p->m - from < M_BLOCK ? p->m - from : M_BLOCK);
}

static TARGET void multiply(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    if (p->w.bits == 8) tiles_of(p, 8, first, last);
    else if (p->w.bits == 3) tiles_of(p, 3, first, last);
    else tiles_of(p, 4, first, last);
}

const Method i16_avx2 = {prepare, multiply, 4, 16, sizeof(int16_t), 0, MOST_ROWS};
#endif
