/* The product in float32 arithmetic, for every machine: the vectors are the compiler's. */
#include "qint4.h"

#include <string.h>

/* VECTOR: bytes of a register. Compilers make poor code of vectors that are wider than the machine's. */
enum { M_BLOCK = 64, M_REGISTERS = 4, VECTOR = 16 };

typedef float Floats __attribute__((vector_size(VECTOR)));
typedef uint32_t Words __attribute__((vector_size(VECTOR)));
typedef int32_t Ints __attribute__((vector_size(VECTOR)));

#define LANES (VECTOR / (int)sizeof(float))
#define PARTS (ROWS / LANES)

/* Codes - 8 of some columns of a tile, [columns][PARTS]. */
static inline void decode(const uint32_t *words, ptrdiff_t columns, Floats *to)
{
    for (ptrdiff_t b = 0; b < columns / BLOCK; b++)
        for (int part = 0; part < PARTS; part++) {
            Words word = *(const Words *)(words + b * ROWS + part * LANES);
            Floats *out = to + b * BLOCK * PARTS + part;
            for (int p = 0; p < 4; p++) {
                Ints even = (Ints)(word >> (4 * p) & 15) - 8, odd = (Ints)(word >> (16 + 4 * p) & 15) - 8;
                out[2 * p * PARTS] = __builtin_convertvector(even, Floats);
                out[(2 * p + 1) * PARTS] = __builtin_convertvector(odd, Floats);
            }
        }
}

/* Codes - 4 of 3 bits. */
static inline void decode_3(const uint32_t *words, ptrdiff_t columns, Floats *to)
{
    for (ptrdiff_t k = 0; k < columns; k += K_ALIGN, words += 3 * ROWS)
        for (int part = 0; part < PARTS; part++) {
            const Words *from = (const Words *)words + part;
            const Words a = from[0], b = from[PARTS], d = from[2 * PARTS];
#pragma GCC unroll 32
            for (int c = 0; c < K_ALIGN; c++)
                to[(k + c) * PARTS + part] = __builtin_convertvector((Ints)(CODE_OF_3(a, b, d, c)) - 4, Floats);
        }
}

/* total[i] += s * (codes . x[i]) + z * sum(x[i]) for `m` rows of x, a constant after inlining. */
static inline __attribute__((always_inline)) void rows(
    int m, const Floats *codes, ptrdiff_t columns, const float *x, ptrdiff_t stride, const float *sums,
    ptrdiff_t sums_stride, const Floats *s, const Floats *z, Floats *total)
{
    Floats dot[M_REGISTERS][PARTS] = {{{0}}};
    for (ptrdiff_t k = 0; k < columns; k++)
        for (int i = 0; i < m; i++)
            for (int part = 0; part < PARTS; part++) dot[i][part] += codes[k * PARTS + part] * x[i * stride + k];
    for (int i = 0; i < m; i++)
        for (int part = 0; part < PARTS; part++)
            total[i * PARTS + part] += s[part] * dot[i][part] + z[part] * sums[i * sums_stride];
}

static void prepare(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    for (ptrdiff_t row = first; row < last; row++) {
        float *x = p->floats + row * p->w.kp;
        memcpy(x, (const float *)p->x + row * p->w.k, (size_t)p->w.k * sizeof *x);
        memset(x + p->w.k, 0, (size_t)(p->w.kp - p->w.k) * sizeof *x);
        for (ptrdiff_t g = 0; g < p->segments; g++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (ptrdiff_t k = 0; k < segment_columns(p, g); k++) sum += x[g * p->segment + k];
            p->sums[row * p->segments + g] = sum;
        }
    }
}

static void multiply(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    const Weight *w = &p->w;
    Floats codes[MAX_SEGMENT * PARTS];
    for (ptrdiff_t from = 0; from < p->m; from += M_BLOCK) {
        ptrdiff_t m = p->m - from < M_BLOCK ? p->m - from : M_BLOCK;
        for (ptrdiff_t tile = first; tile < last; tile++) {
            Floats total[M_BLOCK * PARTS] = {{0}};
            for (ptrdiff_t g = 0; g < p->segments; g++) {
                ptrdiff_t k = g * p->segment, columns = segment_columns(p, g);
                const uint16_t *scales = scales_at(w, tile, k);
                Floats s[PARTS], z[PARTS];
                load_scales(w, scales, (float *)s);
                load_scales(w, scales + ROWS, (float *)z);
                if (w->bits == 3) decode_3(words_at(w, tile, k), columns, codes);
                else decode(words_at(w, tile, k), columns, codes);
                for (ptrdiff_t i = 0; i < m; i += M_REGISTERS) {
                    const float *x = p->floats + (from + i) * w->kp + k, *sums = p->sums + (from + i) * p->segments + g;
                    Floats *to = total + i * PARTS;
                    switch (m - i) {
                    case 1: rows(1, codes, columns, x, w->kp, sums, p->segments, s, z, to); break;
                    case 2: rows(2, codes, columns, x, w->kp, sums, p->segments, s, z, to); break;
                    case 3: rows(3, codes, columns, x, w->kp, sums, p->segments, s, z, to); break;
                    default: rows(4, codes, columns, x, w->kp, sums, p->segments, s, z, to);
                    }
                }
            }
            ptrdiff_t n = w->n - tile * ROWS < ROWS ? w->n - tile * ROWS : ROWS;
            for (ptrdiff_t i = 0; i < m; i++)
                memcpy((float *)p->y + (from + i) * w->n + tile * ROWS, total + i * PARTS, (size_t)n * sizeof(float));
        }
    }
}

const Method f32_generic = {prepare, multiply, 4, 4, sizeof(float), 0, 0};
