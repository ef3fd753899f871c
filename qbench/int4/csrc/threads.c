/* The threads of torch: a pool of our own would spin against it for the same cores. */
#define _GNU_SOURCE
#include "qint4.h"

#include <dlfcn.h>

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    Range work;
    void *context;
    ptrdiff_t count, piece, next;
} Loop;

static void take_pieces(void *pointer)
{
    Loop *loop = pointer;
    for (;;) {
        ptrdiff_t first = __atomic_fetch_add(&loop->next, loop->piece, __ATOMIC_RELAXED);
        if (first >= loop->count) return;
        ptrdiff_t last = first + loop->piece;
        loop->work(loop->context, first, last < loop->count ? last : loop->count);
    }
}

void qint4_parallel(Range work, void *context, ptrdiff_t count, ptrdiff_t piece, int threads)
{
    /* torch loads its OpenMP runtime for everyone to see. Without it one thread does the work. */
    static Parallel parallel;
    if (!parallel) parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (threads <= 1 || count <= piece || !parallel) {
        work(context, 0, count);
        return;
    }
    Loop loop = {work, context, count, piece, 0};
    parallel(take_pieces, &loop, (unsigned)threads, 0);
}
