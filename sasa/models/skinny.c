/* y = x w^T + bias for float32 x (m, k) of few rows, w (n, k), y (m, n), all contiguous; n a multiple of 4.
 *
 * Libraries are made for many rows: they copy the weights into an order of their own first, which takes longer than the
 * product itself when x has ten rows. Here every weight is read once, from where it lies, and meets all rows of x while
 * it is in the cache, and the weights that come next are fetched meanwhile. A row of y does not depend on how many rows
 * there are, to the last bit.
 */
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define TALL 6 /* rows of x in a tile: TALL * WIDE sums, WIDE weights and an x fill the registers */
#elif defined(__AVX__)
#define LANES 8
#define TALL 3
#else
#define LANES 4
#define TALL 6
#endif
#define WIDE 4   /* rows of w in a tile */
#define STRIP 16 /* rows of w that stay in the second-level cache while all rows of x pass */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float quad __attribute__((vector_size(16), aligned(4)));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int places __attribute__((vector_size(16)));
#define PICK(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

INLINE quad fold(vec v) {
    quad part[LANES / 4], sum;
    memcpy(part, &v, sizeof v);
    sum = part[0];
    UNROLL for (int i = 1; i < LANES / 4; i++) sum += part[i];
    return sum;
}

/* rows x WIDE results; on the way it fetches `lines` rows of weights from `next` on. */
INLINE void tile(const int rows, const int lines, const float *x, const float *w, const float *next, const float *bias,
                 float *y, long k, long n) {
    vec sum[TALL][WIDE];
    memset(sum, 0, sizeof sum);
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
        vec b[WIDE];
        UNROLL for (int c = 0; c < WIDE; c++) {
            b[c] = *(const vec *)(w + c * k + i);
            if (c < lines) __builtin_prefetch(next + c * k + i, 0, 2);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vec a = *(const vec *)(x + r * k + i);
            UNROLL for (int c = 0; c < WIDE; c++) sum[r][c] += a * b[c];
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        quad s0 = fold(sum[r][0]), s1 = fold(sum[r][1]), s2 = fold(sum[r][2]), s3 = fold(sum[r][3]);
        quad s01 = PICK(s0, s1, 0, 4, 1, 5) + PICK(s0, s1, 2, 6, 3, 7);
        quad s23 = PICK(s2, s3, 0, 4, 1, 5) + PICK(s2, s3, 2, 6, 3, 7);
        quad out = PICK(s01, s23, 0, 1, 4, 5) + PICK(s01, s23, 2, 3, 6, 7);
        for (long j = i; j < k; j++)
            for (int c = 0; c < WIDE; c++) out[c] += x[r * k + j] * w[c * k + j];
        if (bias) out += *(const quad *)bias;
        *(quad *)(y + r * n) = out;
    }
}

#define TILE(rows, lines) tile(rows, lines, x, w, next, bias, y, k, n)
#define CASE(rows)                           \
    case rows:                               \
        if (lines == 4) TILE(rows, 4);       \
        else if (lines == 2) TILE(rows, 2);  \
        else if (lines == 1) TILE(rows, 1);  \
        else TILE(rows, 0);                  \
        break;

static void tiles(int rows, int lines, const float *x, const float *w, const float *next, const float *bias, float *y,
                  long k, long n) {
    switch (rows) {
        CASE(1) CASE(2) CASE(3)
#if TALL > 3
        CASE(4) CASE(5) CASE(6)
#endif
    }
}

void skinny_linear(const float *x, const float *w, const float *bias, float *y, long m, long k, long n, int threads) {
    const long blocks = (m + TALL - 1) / TALL, strips = (n + STRIP - 1) / STRIP;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long s = 0; s < strips; s++) {
        const long end = (s + 1) * STRIP < n ? (s + 1) * STRIP : n;
        for (long b = 0, fetched = 0; b < blocks; b++) {
            const long top = b * m / blocks, rows = (b + 1) * m / blocks - top;
            /* The blocks share the fetching of the next strip: a tile each of 4, 2 or 1 rows until all are on their way. */
            const int lines = fetched >= WIDE ? 0 : blocks == 1 ? 4 : blocks == 2 || (blocks == 3 && b == 0) ? 2 : 1;
            for (long c = s * STRIP; c < end; c += WIDE)
                tiles((int)rows, lines, x + top * k, w + c * k, w + (c + STRIP + fetched) * k, bias ? bias + c : 0,
                      y + top * n + c, k, n);
            fetched += lines;
        }
    }
}
