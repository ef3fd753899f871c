/* bfloat16 activations as integers of two bytes, for 8-bit dot products.

   In every segment of a row, x = step * i with step a power of two and |i| < 2^14. A bfloat16 has 8 significant bits, so
   whatever is at least 1/64 of the segment's largest is exact, and the rest is rounded by at most 2^-14 of the largest:
   far less than the rounding of a result to bfloat16. An integer is split into two signed bytes, i = 256 high + low, its
   limbs, and

       sum(q x) = step * (256 sum(q high) + sum(q low))

   is exact in 32 bits. With the codes q as unsigned nibbles, y = s sum(q x) + (z - 8 s) sum(x).

   Limbs lie as [kp / width][2][m][width], the high ones of all rows of x before the low ones. Every 8 columns are in the
   order 0 4 1 5 2 6 3 7, in which masks take the codes out of their words. */
#ifndef LIMBS_H
#define LIMBS_H

#include "avx512.h"

#include <string.h>

/* 8 columns from k on. */
INLINE void store_limbs(const Product *p, ptrdiff_t row, ptrdiff_t k, int64_t high, int64_t low)
{
    ptrdiff_t width = p->limbs_width;
    int8_t *to = p->limbs + (k / width * 2 * p->m + row) * width + k % width;
    memcpy(to, &high, sizeof high);
    memcpy(to + p->m * width, &low, sizeof low);
}

INLINE void prepare_segment(const Product *p, ptrdiff_t row, ptrdiff_t g)
{
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    ptrdiff_t k = g * p->segment, end = k + segment_columns(p, g);
    __m512i largest = _mm512_setzero_si512(); /* as integers, of which a NaN's is larger than infinity's */
    for (ptrdiff_t i = k; i < end; i += 16)
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(load_bf16(p, row, i))));
    float step = step_of(_mm512_reduce_max_epu32(largest), 14);
    __m512 inverse = _mm512_set1_ps(1 / step);
    __m512i sum = _mm512_setzero_si512();
    for (ptrdiff_t i = k; i < end; i += 16) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(p, row, i), inverse));
        __m128i low = _mm512_cvtepi32_epi8(whole);
        __m512i rest = _mm512_sub_epi32(whole, _mm512_cvtepi8_epi32(low));
        __m128i high = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(_mm512_srai_epi32(rest, 8)), order);
        low = _mm_shuffle_epi8(low, order);
        store_limbs(p, row, i, _mm_extract_epi64(high, 0), _mm_extract_epi64(low, 0));
        store_limbs(p, row, i + BLOCK, _mm_extract_epi64(high, 1), _mm_extract_epi64(low, 1));
        sum = _mm512_add_epi32(sum, whole);
    }
    p->steps[row * p->segments + g] = step;
    p->sums[row * p->segments + g] = step * (float)_mm512_reduce_add_epi32(sum);
}

static TARGET void prepare_limbs(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    for (ptrdiff_t row = first; row < last; row++)
        for (ptrdiff_t g = 0; g < p->segments; g++) prepare_segment(p, row, g);
}

/* total + s sum(q x) + (z - 8 s) sum(x), of the segment g of a row of x. */
INLINE __m512 scaled(const Product *p, ptrdiff_t row, ptrdiff_t g, __m512i high, __m512i low, __m512 s, __m512 offset,
                     __m512 total)
{
    __m512 step = _mm512_set1_ps(p->steps[row * p->segments + g]);
    __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
    total = _mm512_fmadd_ps(offset, _mm512_set1_ps(p->sums[row * p->segments + g]), total);
    return _mm512_fmadd_ps(_mm512_mul_ps(s, step), _mm512_cvtepi32_ps(whole), total);
}

INLINE __m512 offset_of(__m512 s, __m512 z) { return _mm512_fnmadd_ps(_mm512_set1_ps(8), s, z); }

#endif
