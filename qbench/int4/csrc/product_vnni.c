/* bfloat16 activations by AVX-512's 8-bit dot products (VNNI): four products a lane and instruction, and codes that are
   ready after a mask, without a table.

   x is turned into two limbs first, see limbs.h. A word's nibbles are in the order 0 2 4 6 1 3 5 7, so masking it gives
   the columns 0 4 1 5, and masking it shifted gives 2 6 3 7: the order of the limbs. */
#include "qint4.h"

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c,prefer-vector-width=512")))
#include "limbs.h"

#include <string.h>

enum { DIRECT = 4, M_REGISTERS = 6, M_BLOCK = 48 };

INLINE __m512i four(const int8_t *limbs)
{
    int32_t all;
    memcpy(&all, limbs, sizeof all);
    return _mm512_set1_epi32(all);
}

typedef struct { __m512i high, low; } Pair;

/* 8 columns of 16 rows, as `even` (0 4 1 5) and `odd` (2 6 3 7), times those of a row of x. */
INLINE void dot(Pair *sum, __m512i even, __m512i odd, const int8_t *high, const int8_t *low)
{
    sum->high = _mm512_dpbusd_epi32(sum->high, even, four(high));
    sum->high = _mm512_dpbusd_epi32(sum->high, odd, four(high + 4));
    sum->low = _mm512_dpbusd_epi32(sum->low, even, four(low));
    sum->low = _mm512_dpbusd_epi32(sum->low, odd, four(low + 4));
}

/* Limbs of a row's columns [k, k + 8): the high ones; the low ones are m * 8 bytes on. */
INLINE const int8_t *limbs_at(const Product *p, ptrdiff_t row, ptrdiff_t k)
{
    return p->limbs + 2 * k * p->m + row * BLOCK;
}

/* Some tiles, side by side, for up to DIRECT rows of x; `m` and `tiles` are constants after inlining. Codes go straight
   into products. Memory answers faster to several streams than to one, and so do the chains of products. */
INLINE void direct(const Product *p, ptrdiff_t tile, int m, int tiles)
{
    const Weight *w = &p->w;
    const __m512i mask = _mm512_set1_epi8(15);
    const ptrdiff_t stride = w->kp / BLOCK * ROWS;
    const uint32_t *word = w->words + tile * stride;
    __m512 total[DIRECT][DIRECT];
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < m; i++) total[t][i] = _mm512_setzero_ps();
    for (ptrdiff_t g = 0; g < p->segments; g++) {
        const int8_t *limbs = limbs_at(p, 0, g * p->segment);
        Pair sum[DIRECT][DIRECT];
        for (int t = 0; t < tiles; t++)
            for (int i = 0; i < m; i++) sum[t][i] = (Pair){_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (ptrdiff_t b = 0; b < segment_columns(p, g) / BLOCK; b++, word += ROWS, limbs += 2 * m * BLOCK)
            for (int t = 0; t < tiles; t++) {
                __m512i codes = _mm512_load_si512(word + t * stride);
                _mm_prefetch((const char *)(word + t * stride) + AHEAD, _MM_HINT_T0);
                __m512i even = _mm512_and_si512(codes, mask);
                __m512i odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
                for (int i = 0; i < m; i++) dot(&sum[t][i], even, odd, limbs + i * BLOCK, limbs + (m + i) * BLOCK);
            }
        for (int t = 0; t < tiles; t++) {
            const uint16_t *scales = scales_at(w, tile + t, g * p->segment);
            __m512 s = scales16(w, scales), offset = offset_of(s, scales16(w, scales + ROWS));
            for (int i = 0; i < m; i++) total[t][i] = scaled(p, i, g, sum[t][i].high, sum[t][i].low, s, offset, total[t][i]);
        }
    }
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < m; i++) store_bf16(p, i, tile + t, total[t][i]);
}

/* A segment's codes, masked, times `m` rows from `row` on, a constant after inlining. */
INLINE void rows(const Product *p, ptrdiff_t row, int m, ptrdiff_t g, const __m512i *codes, __m512 s, __m512 offset,
                 __m512 *total)
{
    const int8_t *limbs = limbs_at(p, row, g * p->segment);
    Pair sum[M_REGISTERS];
    for (int i = 0; i < m; i++) sum[i] = (Pair){_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (ptrdiff_t b = 0; b < segment_columns(p, g) / BLOCK; b++, limbs += 2 * p->m * BLOCK) {
        __m512i even = _mm512_load_si512(codes + 2 * b), odd = _mm512_load_si512(codes + 2 * b + 1);
        for (int i = 0; i < m; i++) dot(&sum[i], even, odd, limbs + i * BLOCK, limbs + (p->m + i) * BLOCK);
    }
    for (int i = 0; i < m; i++) total[i] = scaled(p, row + i, g, sum[i].high, sum[i].low, s, offset, total[i]);
}

/* A tile for `m` rows of x from row `from`: a segment is masked once and stays in the first cache. */
static TARGET void blocked(const Product *p, ptrdiff_t tile, ptrdiff_t from, ptrdiff_t m)
{
    const Weight *w = &p->w;
    const __m512i mask = _mm512_set1_epi8(15);
    __m512 total[M_BLOCK];
    __m512i codes[MAX_SEGMENT / BLOCK * 2];
    const uint32_t *word = w->words + tile * w->kp / BLOCK * ROWS;
    for (ptrdiff_t i = 0; i < m; i++) total[i] = _mm512_setzero_ps();
    for (ptrdiff_t g = 0; g < p->segments; g++) {
        for (ptrdiff_t b = 0; b < segment_columns(p, g) / BLOCK; b++, word += ROWS) {
            __m512i packed = _mm512_load_si512(word);
            _mm_prefetch((const char *)word + AHEAD, _MM_HINT_T0);
            codes[2 * b] = _mm512_and_si512(packed, mask);
            codes[2 * b + 1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        }
        const uint16_t *scales = scales_at(w, tile, g * p->segment);
        __m512 s = scales16(w, scales), offset = offset_of(s, scales16(w, scales + ROWS));
        ptrdiff_t i = 0;
        for (; i + M_REGISTERS <= m; i += M_REGISTERS)
            rows(p, from + i, M_REGISTERS, g, codes, s, offset, total + i);
        for (; i + 2 <= m; i += 2) rows(p, from + i, 2, g, codes, s, offset, total + i);
        if (i < m) rows(p, from + i, 1, g, codes, s, offset, total + i);
    }
    for (ptrdiff_t i = 0; i < m; i++) store_bf16(p, from + i, tile, total[i]);
}

static TARGET void multiply(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    ptrdiff_t tile = first;
    if (p->m == 1)
        for (; tile + 4 <= last; tile += 4) direct(p, tile, 1, 4);
    if (p->m == 2)
        for (; tile + 4 <= last; tile += 4) direct(p, tile, 2, 4);
    if (p->m == 3)
        for (; tile + 2 <= last; tile += 2) direct(p, tile, 3, 2);
    if (p->m == 4)
        for (; tile + 2 <= last; tile += 2) direct(p, tile, 4, 2);
    for (; tile < last; tile++)
        for (ptrdiff_t from = 0; from < p->m; from += M_BLOCK)
            blocked(p, tile, from, p->m - from < M_BLOCK ? p->m - from : M_BLOCK);
}

const Method bf16_vnni = {prepare_limbs, multiply, 4, 4, 2 * sizeof(int8_t), BLOCK, 0};
#endif
