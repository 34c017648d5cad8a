/* Matrix products, transposes and an exponential, on vectors of the compiler: what everything else here is made of.

   LANES is the level's vector width in floats: 16 for x86-64-v4, 8 for x86-64-v3, 4 elsewhere. Every width is a multiple
   of eight. Sums are taken lane by lane in a written order, so no flag that lets the compiler reorder sums is needed, and
   the bits are the same on every processor of a level. */

#include <math.h>
#include <string.h>

enum { HEAD = 24, DEPTH = 128, VECTOR = 8 }; /* width of a head; of a slice of a product; of a short vector */

#define INLINE static inline __attribute__((always_inline))
typedef float wide __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int eight_int __attribute__((vector_size(32), aligned(4), may_alias));

/* Numbers below 1.2e-38 count as zero while we compute: a model that is sure of itself makes chances of that size by the
   thousand, and a product with them takes up to sixty times as long. How the caller's thread counts is restored. */
#if defined(__x86_64__)
typedef unsigned Mode;
enum { FLUSH_TINY = 0x8040 }; /* of results, and of what is read */
INLINE void set_mode(Mode mode) { __asm__ volatile("ldmxcsr %0" : : "m"(mode) : "memory"); }
INLINE Mode flush_tiny(void) {
    Mode before;
    __asm__ volatile("stmxcsr %0" : "=m"(before) : : "memory");
    set_mode(before | FLUSH_TINY);
    return before;
}
#elif defined(__aarch64__)
typedef unsigned long Mode;
enum { FLUSH_TINY = 1 << 24 };
INLINE void set_mode(Mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
INLINE Mode flush_tiny(void) {
    Mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before) : : "memory");
    set_mode(before | FLUSH_TINY);
    return before;
}
#else
typedef int Mode;
INLINE void set_mode(Mode mode) { (void)mode; }
INLINE Mode flush_tiny(void) { return 0; }
#endif

INLINE long padded(long n) { return (n + 7) & ~7L; }
INLINE eight load(const float *x) { return *(const eight *)x; }
INLINE void store(float *x, eight value) { *(eight *)x = value; }
INLINE float sum(eight x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

#if LANES == 16
typedef wide broad; /* the longest vector that is no shorter than eight */
typedef int broad_int __attribute__((vector_size(64), aligned(4), may_alias));
static const broad_int LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
typedef eight broad;
typedef eight_int broad_int;
static const broad_int LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
enum { BROAD = sizeof(broad) / sizeof(float) };

INLINE broad load_broad(const float *x) { return *(const broad *)x; }
INLINE void store_broad(float *x, broad value) { *(broad *)x = value; }
INLINE broad choose(broad_int mask, broad yes, broad no) {
    return (broad)(((broad_int)yes & mask) | ((broad_int)no & ~mask));
}
INLINE float sum_broad(broad x) {
    eight half = {0};
    for (int i = 0; i < BROAD; i += 8) half += load((float *)&x + i);
    return sum(half);
}
/* `before` in the lanes up to `lane`, `after` from it on. */
INLINE broad split(long lane, broad before, broad after) { return choose(LANE < (int)lane, before, after); }

/* ------------------------------------------------------------------ matrix products
   C (+)= A B for a tile of C that stays in registers. A is read one number at a time, so any strides do:
   `row` from one row to the next, `step` along the depth. */
#define TILE(NAME, TYPE, LENGTH)                                                                                     \
    INLINE void NAME(int rows, int columns, long depth, const float *a, long row, long step, const float *b,         \
                     long ldb, float *c, long ldc, int add) {                                                        \
        TYPE held[8][3];                                                                                             \
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)                                                       \
            _Pragma("GCC unroll 3") for (int j = 0; j < columns; j++)                                                \
                held[r][j] = add ? *(TYPE *)(c + r * ldc + j * LENGTH) : (TYPE){0};                                  \
        for (long k = 0; k < depth; k++) {                                                                           \
            _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) {                                                 \
                float x = a[r * row + k * step];                                                                     \
                _Pragma("GCC unroll 3") for (int j = 0; j < columns; j++)                                            \
                    held[r][j] += x * *(const TYPE *)(b + k * ldb + j * LENGTH);                                     \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++)                                                       \
            _Pragma("GCC unroll 3") for (int j = 0; j < columns; j++)                                                \
                *(TYPE *)(c + r * ldc + j * LENGTH) = held[r][j];                                                    \
    }
TILE(tile_wide, wide, LANES)
TILE(tile_eight, eight, 8)

#if LANES == 16 || defined(__aarch64__)
enum { TALL = 8 }; /* rows of the widest tile: 32 registers hold 8 x 3 sums */
#else
enum { TALL = 4 }; /* 16 registers hold 4 x 3 sums */
#endif

/* One panel of columns, all rows. A panel of one vector takes eight rows, so that enough sums are under way. */
#define PANEL(NAME, TILE_OF, COLUMNS, ROWS)                                                                          \
    static void NAME(long m, long depth, const float *a, long row, long step, const float *b, long ldb, float *c,    \
                     long ldc, int add) {                                                                            \
        for (long r = 0; r < m; r += ROWS)                                                                           \
            TILE_OF(ROWS, COLUMNS, depth, a + r * row, row, step, b, ldb, c + r * ldc, ldc, add);                    \
    }
PANEL(panel_3, tile_wide, 3, TALL)
PANEL(panel_2, tile_wide, 2, TALL)
PANEL(panel_1, tile_wide, 1, 8)
PANEL(panel_head, tile_eight, 3, TALL)
PANEL(panel_eight, tile_eight, 1, 8)

/* Columns of the next panel where `left` are left. */
INLINE long panel_width(long left) {
    if (left >= 3 * LANES) return 3 * LANES;
    if (LANES > 8 && left == HEAD) return HEAD;
    if (left >= 2 * LANES) return 2 * LANES;
    return LANES != 8 && left >= LANES ? LANES : 8;
}

/* C (m, n) (+)= A (m, depth) B (depth, n); m and n are multiples of eight. B has rows of length `ldb`, or, where that
   is 0, is packed by panels. Deep products are taken in slices, so that a panel's slice stays in the first cache, and
   panel by panel, so that the sums stay in the second. */
static void product(long m, long n, long depth, const float *a, long row, long step, const float *b, long ldb,
                    float *c, long ldc, int add) {
    long slices = (depth + DEPTH - 1) / DEPTH, slice = (depth + slices - 1) / slices;
    for (long from = 0, width; from < n; from += width) {
        width = panel_width(n - from);
        for (long k = 0; k < depth; k += slice) {
            long deep = depth - k < slice ? depth - k : slice;
            const float *ak = a + k * step;
            int more = add || k > 0;
            const float *panel = ldb ? b + k * ldb + from : b + from * depth + k * width;
            long ld = ldb ? ldb : width;
            if (width == 3 * LANES) panel_3(m, deep, ak, row, step, panel, ld, c + from, ldc, more);
            else if (width == HEAD) panel_head(m, deep, ak, row, step, panel, ld, c + from, ldc, more);
            else if (width == 2 * LANES) panel_2(m, deep, ak, row, step, panel, ld, c + from, ldc, more);
            else if (width == LANES) panel_1(m, deep, ak, row, step, panel, ld, c + from, ldc, more);
            else panel_eight(m, deep, ak, row, step, panel, ld, c + from, ldc, more);
        }
    }
}

/* Eight rows of eight: pairs of rows are interleaved by one, by two, by four numbers. */
#if defined(__clang__)
#define MIX(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define MIX(A, B, ...) __builtin_shuffle(A, B, (eight_int){__VA_ARGS__})
#endif
INLINE void transpose_eight(const float *in, long ldin, float *out, long ld) {
    eight a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = load(in + i * ldin);
    for (int i = 0; i < 8; i += 2) {
        b[i] = MIX(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        b[i + 1] = MIX(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = MIX(b[i + j], b[i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + 2 * j + 1] = MIX(b[i + j], b[i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        store(out + i * ld, MIX(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(out + (i + 4) * ld, MIX(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

/* out (columns, rows) = the transpose of in (rows, columns), both multiples of eight; a row of out is `ld` long. */
static void transpose(long rows, long columns, const float *in, long ldin, float *out, long ld) {
    for (long r = 0; r < rows; r += 8)
        for (long c = 0; c < columns; c += 8) transpose_eight(in + r * ldin + c, ldin, out + c * ld + r, ld);
}

/* A weight matrix (n, depth) as the B of a product, x W^T: transposed and packed by panels, so that it is read in the
   order in which it lies. Columns beyond `n`, up to a multiple of eight, are zero. */
static void pack(long n, long depth, const float *w, float *out) {
    for (long from = 0, width; from < padded(n); from += width, out += width * depth) {
        width = panel_width(padded(n) - from);
        long left = n - from, whole = left < 0 ? 0 : (left < width ? left : width) & ~7L;
        transpose(whole, depth, w + from * depth, depth, out, width);
        for (long k = 0; k < depth; k++)
            for (long i = whole; i < width; i++) out[k * width + i] = from + i < n ? w[(from + i) * depth + k] : 0.0f;
    }
}

/* e^x to 2e-7 relative: 2^n times a polynomial (Taylor's) in the rest, |rest| <= ln 2 / 2; NaN stays NaN. Below -87 it
   is 1.6e-38, above 88 it is 1.7e38. The shift, 1.5 x 2^23, rounds to a whole number, in the last bits; ln 2 is taken
   in two parts (Cody and Waite). */
#define EXPONENTIAL(NAME, TYPE, WHOLE)                                                                               \
    INLINE TYPE NAME(TYPE x) {                                                                                       \
        const float shift = 12582912.0f;                                                                             \
        WHOLE low = x < -87.0f, high = x > 88.0f;                                                                    \
        x = (TYPE)(((WHOLE)x & ~low) | ((WHOLE)((TYPE){0} - 87.0f) & low));                                          \
        x = (TYPE)(((WHOLE)x & ~high) | ((WHOLE)((TYPE){0} + 88.0f) & high));                                        \
        TYPE shifted = x * 1.44269504f + shift, whole = shifted - shift;                                             \
        TYPE rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;                                               \
        TYPE power = rest * 1.3888889e-3f + 8.3333333e-3f;                                                           \
        power = power * rest + 4.1666667e-2f;                                                                        \
        power = power * rest + 1.6666667e-1f;                                                                        \
        power = power * rest + 0.5f;                                                                                 \
        power = power * rest + 1.0f;                                                                                 \
        power = power * rest + 1.0f;                                                                                 \
        return power * (TYPE)(((WHOLE)shifted << 23) + 0x3f800000);                                                  \
    }
EXPONENTIAL(exponential, eight, eight_int)
EXPONENTIAL(exponential_broad, broad, broad_int)

INLINE broad larger(broad a, broad b) { return choose(a > b, a, b); }

/* The largest of n numbers, a multiple of BROAD. */
INLINE float largest(const float *x, long n) {
    broad most = load_broad(x);
    for (long k = BROAD; k < n; k += BROAD) most = larger(load_broad(x + k), most);
    float one = most[0];
    for (int k = 1; k < BROAD; k++) one = most[k] > one ? most[k] : one;
    return one;
}
