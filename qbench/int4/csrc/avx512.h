/* What the files with AVX-512 share. */
#ifndef AVX512_H
#define AVX512_H

#include "qint4.h"

#include <immintrin.h>

#define AVX512_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE __m512 scales16(const Weight *w, const uint16_t *from)
{
    __m256i bits = _mm256_loadu_si256((const __m256i *)from);
    if (w->scales_are_fp16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* float32 rounded to bfloat16, ties to even, in the upper halves; NaN stays NaN. */
INLINE __m512i rounded_bf16(__m512 values)
{
    __m512i bits = _mm512_castps_si512(values), last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}

/* 16 results of a row as bfloat16. */
INLINE void store_bf16(const Product *p, ptrdiff_t row, ptrdiff_t tile, __m512 total)
{
    ptrdiff_t n = p->w.n - tile * ROWS;
    __mmask16 columns = n >= ROWS ? 0xffff : (__mmask16)((1 << n) - 1);
    uint16_t *y = (uint16_t *)p->y + row * p->w.n + tile * ROWS;
    _mm256_mask_storeu_epi16(y, columns, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bf16(total), 16)));
}

/* 16 bfloat16 values of x from column k on, as float32; columns beyond the last are 0. */
INLINE __m512 load_bf16(const Product *p, ptrdiff_t row, ptrdiff_t k)
{
    ptrdiff_t left = p->w.k - k;
    __mmask16 columns = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
    __m256i bits = _mm256_maskz_loadu_epi16(columns, (const uint16_t *)p->x + row * p->w.k + k);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

#endif
