/* How does a client take a step of our decoder without asking a library for a thousand small kernels?

   Loss, gradient and optimizer step of one client, float32, as written in models/decoder.py and federated/client_optimizer.py.
   The text of a step is taken a few sequences at a time: forward, loss and backward of one group stay in the cache,
   and the groups' gradients add up. Rows are padded to a multiple of eight with rows of zeros, whose gradients are
   zero; every width is a multiple of eight. Sums are taken lane by lane in a written order, so no flag that lets the
   compiler reorder sums is needed, and the bits are the same on every processor of a level.

   LANES is the level's vector width in floats: 16 for x86-64-v4, 8 for x86-64-v3, 4 elsewhere. */

#include <math.h>
#include <string.h>

enum { HEAD = 24, GROUP_ROWS = 128, QUERIES = 64, DEPTH = 128, VECTOR = 8 };
static const float NORM_EPSILON = 1e-5f;

#define INLINE static inline __attribute__((always_inline))
typedef float wide __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int eight_int __attribute__((vector_size(32), aligned(4), may_alias));

typedef struct {
    long vocab, width, layers, heads, hidden;
} Shape;

INLINE long padded(long n) { return (n + 7) & ~7L; }
INLINE eight load(const float *x) { return *(const eight *)x; }
INLINE void store(float *x, eight value) { *(eight *)x = value; }
INLINE eight all(float x) { return (eight){x, x, x, x, x, x, x, x}; }
INLINE float sum(eight x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
INLINE eight pick(eight_int mask, eight yes, eight no) {
    return (eight)(((eight_int)yes & mask) | ((eight_int)no & ~mask));
}

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
   is 0, is packed by panels. Deep products are taken in slices, so that a panel's slice stays in the first cache. */
static void product(long m, long n, long depth, const float *a, long row, long step, const float *b, long ldb,
                    float *c, long ldc, int add) {
    long slices = (depth + DEPTH - 1) / DEPTH, slice = (depth + slices - 1) / slices;
    for (long k = 0; k < depth; k += slice) {
        long deep = depth - k < slice ? depth - k : slice;
        const float *ak = a + k * step;
        int more = add || k > 0;
        for (long from = 0, width; from < n; from += width) {
            width = panel_width(n - from);
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

/* A weight matrix (n, depth) as the B of a product, x W^T: transposed and packed by panels, so that it is read in the
   order in which it lies. Columns beyond `n`, up to a multiple of eight, are zero. */
static void pack(long n, long depth, const float *w, float *out) {
    for (long from = 0, width; from < padded(n); from += width, out += width * depth) {
        width = panel_width(padded(n) - from);
        for (long c = from; c < from + width; c += 4)
            for (long k = 0; k < depth; k++)
                for (long i = c; i < c + 4; i++) out[k * width + i - from] = i < n ? w[i * depth + k] : 0.0f;
    }
}

/* out (columns, rows) = the transpose of in (rows, columns); a row of out is `ld` long. */
static void transpose(long rows, long columns, const float *in, long ldin, float *out, long ld) {
    for (long r = 0; r < rows; r += 8)
        for (long c = 0; c < columns; c++)
            for (long i = r; i < r + 8 && i < rows; i++) out[c * ld + i] = in[i * ldin + c];
}

/* e^x to 2e-7 relative: 2^n times a polynomial (Taylor's) in the rest, |rest| <= ln 2 / 2; NaN stays NaN. Below -87 it
   is 1.6e-38, above 88 it is 1.7e38. */
INLINE eight exponential(eight x) {
    const float shift = 12582912.0f; /* 1.5 x 2^23: adding it rounds to a whole number, in the last bits */
    x = pick(x < -87.0f, all(-87.0f), x);
    x = pick(x > 88.0f, all(88.0f), x);
    eight shifted = x * 1.44269504f + shift, whole = shifted - shift;
    eight rest = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2 in two parts (Cody and Waite) */
    eight power = rest * 1.3888889e-3f + 8.3333333e-3f;
    power = power * rest + 4.1666667e-2f;
    power = power * rest + 1.6666667e-1f;
    power = power * rest + 0.5f;
    power = power * rest + 1.0f;
    power = power * rest + 1.0f;
    return power * (eight)(((eight_int)shifted << 23) + 0x3f800000);
}

INLINE float largest(const float *x, long n) {
    eight most = load(x);
    for (long k = 8; k < n; k += 8) most = pick(load(x + k) > most, load(x + k), most);
    float one = most[0];
    for (int k = 1; k < 8; k++) one = most[k] > one ? most[k] : one;
    return one;
}

/* ------------------------------------------------------------------ the model's weights, and room for a group */
typedef struct {
    float *norm, *qkv, *out, *mlp_norm, *gate_up, *down;
} Layer;

/* The tensors of a layer inside the flat vector, in the order of models/decoder.py. */
static Layer layer_of(const Shape *s, const float *flat, long number) {
    long d = s->width, inner = s->heads * HEAD, size = 2 * d + 4 * d * inner + 3 * d * s->hidden;
    Layer w;
    w.norm = (float *)flat + s->vocab * d + number * size;
    w.qkv = w.norm + d;
    w.out = w.qkv + 3 * inner * d;
    w.mlp_norm = w.out + d * inner;
    w.gate_up = w.mlp_norm + d;
    w.down = w.gate_up + 2 * s->hidden * d;
    return w;
}

/* What the forward pass of a layer leaves for the backward pass, for all rows of a group. */
typedef struct {
    float *x, *normed, *scale, *qkv, *most, *share, *mixed, *middle, *mlp_normed, *mlp_scale, *gates, *active;
} Kept;

enum { MOST_LAYERS = 64 };
typedef struct {
    long rows, span;                 /* rows of a group, and of a sequence, padded */
    Layer packed[MOST_LAYERS];       /* weights as the forward pass reads them */
    Kept kept[MOST_LAYERS + 1];      /* the last holds the decoder's output */
    float *embedding, *d_embedding;
    long words;                      /* length of a row of logits, padded off powers of two */
    float *logits, *normed, *d_normed, *dx, *d_wide, *d_qkv, *d_mixed;
    float *keys_t, *values_t, *scores, *d_scores;
    long used;
} Room;

static float *take(Room *room, float *base, long count) {
    float *here = base ? base + room->used : 0;
    room->used += (count + 15) & ~15L;
    return here;
}

static long most_of(long a, long b) { return a > b ? a : b; }

/* Lay out the working memory from `base` on; without a base, only count. */
static Room lay_out(const Shape *s, long batch, long length, float *base) {
    Room room = {0};
    long d = s->width, inner = s->heads * HEAD, hidden = s->hidden, span = padded(length);
    long together = GROUP_ROWS / span < 1 ? 1 : GROUP_ROWS / span;
    long rows = span * (together < batch ? together : batch);
    room.rows = rows, room.span = span, room.words = padded(s->vocab) + VECTOR;
    for (long l = 0; l < s->layers; l++) {
        room.packed[l].qkv = take(&room, base, 3 * inner * d), room.packed[l].out = take(&room, base, inner * d);
        room.packed[l].gate_up = take(&room, base, 2 * hidden * d), room.packed[l].down = take(&room, base, hidden * d);
    }
    for (long l = 0; l <= s->layers; l++) {
        Kept *k = &room.kept[l];
        k->x = take(&room, base, rows * d), k->scale = take(&room, base, rows);
        if (l == s->layers) break;
        k->normed = take(&room, base, rows * d), k->qkv = take(&room, base, rows * 3 * inner);
        k->most = take(&room, base, rows * s->heads), k->share = take(&room, base, rows * s->heads);
        k->mixed = take(&room, base, rows * inner), k->middle = take(&room, base, rows * d);
        k->mlp_normed = take(&room, base, rows * d), k->mlp_scale = take(&room, base, rows);
        k->gates = take(&room, base, rows * 2 * hidden), k->active = take(&room, base, rows * hidden);
    }
    room.embedding = take(&room, base, d * padded(s->vocab)), room.d_embedding = take(&room, base, padded(s->vocab) * d);
    room.logits = take(&room, base, GROUP_ROWS * room.words);
    room.normed = take(&room, base, GROUP_ROWS * d), room.d_normed = take(&room, base, rows * d);
    room.dx = take(&room, base, rows * d), room.d_wide = take(&room, base, rows * 2 * hidden);
    room.d_qkv = take(&room, base, rows * 3 * inner), room.d_mixed = take(&room, base, rows * most_of(inner, hidden));
    room.keys_t = take(&room, base, HEAD * (span + VECTOR)), room.values_t = take(&room, base, HEAD * (span + VECTOR));
    room.scores = take(&room, base, QUERIES * (span + VECTOR));
    room.d_scores = take(&room, base, QUERIES * (span + VECTOR));
    return room;
}

/* ------------------------------------------------------------------ norms */
static void normalize(long rows, long d, const float *x, const float *gain, float *y, float *scale) {
    for (long r = 0; r < rows; r++, x += d, y += d) {
        eight squares = {0};
        for (long i = 0; i < d; i += 8) squares += load(x + i) * load(x + i);
        float one = 1.0f / sqrtf(sum(squares) / (float)d + NORM_EPSILON);
        scale[r] = one;
        for (long i = 0; i < d; i += 8) store(y + i, load(x + i) * one * load(gain + i));
    }
}

/* Adds to the gradients of the input and of the gain. */
static void normalize_backward(long rows, long d, const float *x, const float *gain, const float *scale,
                               const float *dy, float *dx, float *d_gain) {
    for (long r = 0; r < rows; r++, x += d, dy += d, dx += d) {
        float one = scale[r];
        eight dots = {0};
        for (long i = 0; i < d; i += 8) {
            eight product_of = load(dy + i) * load(x + i);
            dots += product_of * load(gain + i);
            store(d_gain + i, load(d_gain + i) + product_of * one);
        }
        float along = sum(dots) * one * one * one / (float)d;
        for (long i = 0; i < d; i += 8)
            store(dx + i, load(dx + i) + load(dy + i) * load(gain + i) * one - load(x + i) * along);
    }
}

/* ------------------------------------------------------------------ attention */
/* Turn the two halves of every query and key by their positions' angles, back again where `sign` is -1. */
static void rotate(const Shape *s, const Room *room, const float *cosine, const float *sine, float *qkv, float sign) {
    long inner = s->heads * HEAD;
    for (long r = 0; r < room->rows; r++) {
        const float *c = cosine + (r % room->span) * HEAD, *z = sine + (r % room->span) * HEAD;
        for (long j = 0; j < 2 * s->heads; j++) {
            float *one = qkv + r * 3 * inner + j * HEAD, *two = one + HEAD / 2;
            for (int i = 0; i < HEAD / 2; i++) {
                float a = one[i], b = two[i], turn = sign * z[i];
                one[i] = a * c[i] - b * turn;
                two[i] = b * c[i] + a * turn;
            }
        }
    }
}

/* Of eight queries in a row, query r sees the first r + 1 of the last eight keys. */
static const eight_int SEEN[8] = {
    {-1}, {-1, -1}, {-1, -1, -1}, {-1, -1, -1, -1}, {-1, -1, -1, -1, -1}, {-1, -1, -1, -1, -1, -1},
    {-1, -1, -1, -1, -1, -1, -1}, {-1, -1, -1, -1, -1, -1, -1, -1},
};

/* One head of one sequence: what its queries mix together of its values. */
static void attend(const Shape *s, const Room *room, const float *q, float *mixed, float *most, float *share) {
    long inner = s->heads * HEAD, ld = 3 * inner, span = room->span, lds = span + VECTOR;
    const float *keys = q + inner, *values = keys + inner, scale = 1.0f / sqrtf(HEAD);
    transpose(span, HEAD, keys, ld, room->keys_t, lds);
    for (long i = 0; i < span; i += 8) {
        long width = i + 8;
        product(8, width, HEAD, q + i * ld, ld, 1, room->keys_t, lds, room->scores, lds, 0);
        for (long r = 0; r < 8; r++) {
            float *row = room->scores + r * lds;
            store(row + i, pick(SEEN[r], load(row + i), all(row[i])));
            float peak = most[i + r] = largest(row, width) * scale;
            eight total = {0};
            for (long k = 0; k < i; k += 8) {
                eight chance = exponential(load(row + k) * scale - peak);
                store(row + k, chance);
                total += chance;
            }
            eight last = pick(SEEN[r], exponential(load(row + i) * scale - peak), all(0.0f));
            store(row + i, last);
            share[i + r] = 1.0f / sum(total + last);
        }
        product(8, HEAD, width, room->scores, lds, 1, values, ld, mixed + i * inner, inner, 0);
        for (long r = 0; r < 8; r++)
            for (long j = 0; j < HEAD; j += 8) {
                float *one = mixed + (i + r) * inner + j;
                store(one, load(one) * share[i + r]);
            }
    }
}

/* The same head backward, some queries at a time: their chances are made again rather than kept. */
static void attend_backward(const Shape *s, const Room *room, const float *q, const float *mixed, const float *most,
                            const float *share, const float *d_mixed, float *dq) {
    long inner = s->heads * HEAD, ld = 3 * inner, span = room->span, lds = span + VECTOR;
    const float *keys = q + inner, *values = keys + inner, scale = 1.0f / sqrtf(HEAD);
    float *d_keys = dq + inner, *d_values = d_keys + inner, *scores = room->scores, *d_scores = room->d_scores;
    transpose(span, HEAD, keys, ld, room->keys_t, lds);
    transpose(span, HEAD, values, ld, room->values_t, lds);
    for (long first = 0; first < span; first += QUERIES) {
        long end = first + QUERIES < span ? first + QUERIES : span;
        for (long i = first; i < end; i += 8) {
            long width = i + 8;
            float *rows = scores + (i - first) * lds, *d_rows = d_scores + (i - first) * lds;
            product(8, width, HEAD, q + i * ld, ld, 1, room->keys_t, lds, rows, lds, 0);
            product(8, width, HEAD, d_mixed + i * inner, inner, 1, room->values_t, lds, d_rows, lds, 0);
            for (long r = 0; r < 8; r++) {
                float *row = rows + r * lds, *d_row = d_rows + r * lds, own = share[i + r];
                const float *of = mixed + (i + r) * inner, *d_of = d_mixed + (i + r) * inner;
                float mean = sum(load(of) * load(d_of) + load(of + 8) * load(d_of + 8) + load(of + 16) * load(d_of + 16));
                for (long k = 0; k < width; k += 8) {
                    eight chance = exponential(load(row + k) * scale - most[i + r]) * own;
                    if (k == i) chance = pick(SEEN[r], chance, all(0.0f));
                    store(row + k, chance);
                    store(d_row + k, chance * (load(d_row + k) - mean) * scale);
                }
            }
            product(8, HEAD, width, d_rows, lds, 1, keys, ld, dq + i * ld, ld, 0);
        }
        for (long k = 0; k < end; k += 8) { /* keys that these queries see */
            long from = k > first ? k : first;
            const float *chance = scores + (from - first) * lds + k, *d_score = d_scores + (from - first) * lds + k;
            product(8, HEAD, end - from, d_score, 1, lds, q + from * ld, ld, d_keys + k * ld, ld, k < first);
            product(8, HEAD, end - from, chance, 1, lds, d_mixed + from * inner, inner, d_values + k * ld, ld, k < first);
        }
    }
}

/* ------------------------------------------------------------------ gated hidden layer */
static void gate(long rows, long hidden, const float *gates, float *active) {
    for (long r = 0; r < rows; r++, gates += 2 * hidden, active += hidden)
        for (long i = 0; i < hidden; i += 8) {
            eight g = load(gates + i);
            store(active + i, g / (1.0f + exponential(-g)) * load(gates + hidden + i));
        }
}

static void gate_backward(long rows, long hidden, const float *gates, const float *d_active, float *d_gates) {
    for (long r = 0; r < rows; r++, gates += 2 * hidden, d_gates += 2 * hidden, d_active += hidden)
        for (long i = 0; i < hidden; i += 8) {
            eight g = load(gates + i), up = load(gates + hidden + i), d = load(d_active + i);
            eight open = 1.0f / (1.0f + exponential(-g));
            store(d_gates + hidden + i, d * g * open);
            store(d_gates + i, d * up * open * (1.0f + g * (1.0f - open)));
        }
}

/* ------------------------------------------------------------------ one group of sequences: layers forward and back */
typedef struct {
    const float *weights, *cosine, *sine;
    float *gradient;
} Pass;

static void forward(const Shape *s, const Room *room, const Pass *pass, long layer) {
    long n = room->rows, d = s->width, inner = s->heads * HEAD, hidden = s->hidden;
    Layer w = layer_of(s, pass->weights, layer);
    const Layer *t = &room->packed[layer];
    const Kept *k = &room->kept[layer];
    normalize(n, d, k->x, w.norm, k->normed, k->scale);
    product(n, 3 * inner, d, k->normed, d, 1, t->qkv, 0, k->qkv, 3 * inner, 0);
    rotate(s, room, pass->cosine, pass->sine, k->qkv, 1.0f);
    for (long row = 0; row < n; row += room->span)
        for (long j = 0; j < s->heads; j++)
            attend(s, room, k->qkv + row * 3 * inner + j * HEAD, k->mixed + row * inner + j * HEAD,
                   k->most + j * n + row, k->share + j * n + row);
    memcpy(k->middle, k->x, n * d * sizeof(float));
    product(n, d, inner, k->mixed, inner, 1, t->out, 0, k->middle, d, 1);
    normalize(n, d, k->middle, w.mlp_norm, k->mlp_normed, k->mlp_scale);
    product(n, 2 * hidden, d, k->mlp_normed, d, 1, t->gate_up, 0, k->gates, 2 * hidden, 0);
    gate(n, hidden, k->gates, k->active);
    memcpy(k[1].x, k->middle, n * d * sizeof(float));
    product(n, d, hidden, k->active, hidden, 1, t->down, 0, k[1].x, d, 1);
}

/* room->dx: in, the gradient of the layer's output; out, that of its input. */
static void backward(const Shape *s, const Room *room, const Pass *pass, long layer) {
    long n = room->rows, d = s->width, inner = s->heads * HEAD, hidden = s->hidden;
    Layer w = layer_of(s, pass->weights, layer), g = layer_of(s, pass->gradient, layer);
    const Kept *k = &room->kept[layer];
    float *dx = room->dx, *d_active = room->d_mixed, *d_gates = room->d_wide;
    product(n, hidden, d, dx, d, 1, w.down, hidden, d_active, hidden, 0);
    product(d, hidden, n, dx, 1, d, k->active, hidden, g.down, hidden, 1);
    gate_backward(n, hidden, k->gates, d_active, d_gates);
    product(n, d, 2 * hidden, d_gates, 2 * hidden, 1, w.gate_up, d, room->d_normed, d, 0);
    product(2 * hidden, d, n, d_gates, 1, 2 * hidden, k->mlp_normed, d, g.gate_up, d, 1);
    normalize_backward(n, d, k->middle, w.mlp_norm, k->mlp_scale, room->d_normed, dx, g.mlp_norm);
    product(n, inner, d, dx, d, 1, w.out, inner, room->d_mixed, inner, 0);
    product(d, inner, n, dx, 1, d, k->mixed, inner, g.out, inner, 1);
    for (long row = 0; row < n; row += room->span)
        for (long j = 0; j < s->heads; j++) {
            long at = row * inner + j * HEAD, at_qkv = row * 3 * inner + j * HEAD;
            attend_backward(s, room, k->qkv + at_qkv, k->mixed + at, k->most + j * n + row, k->share + j * n + row,
                            room->d_mixed + at, room->d_qkv + at_qkv);
        }
    rotate(s, room, pass->cosine, pass->sine, room->d_qkv, -1.0f);
    product(n, d, 3 * inner, room->d_qkv, 3 * inner, 1, w.qkv, d, room->d_normed, d, 0);
    product(3 * inner, d, n, room->d_qkv, 1, 3 * inner, k->normed, d, g.qkv, d, 1);
    normalize_backward(n, d, k->x, w.norm, k->scale, room->d_normed, dx, g.norm);
}

/* ------------------------------------------------------------------ output layer and loss
   Logits of some rows, their loss, and, in their place, its gradient; nothing of size rows x vocabulary is kept.
   `targets` is -1 for rows of padding. Returns the loss summed over the rows. */
static double head(const Shape *s, const Room *room, const Pass *pass, const long *targets, double share) {
    long d = s->width, vocab = s->vocab, columns = padded(vocab), ld = room->words;
    const Kept *last = &room->kept[s->layers];
    const float *gain = layer_of(s, pass->weights, s->layers).norm;
    float *d_gain = layer_of(s, pass->gradient, s->layers).norm;
    double loss = 0.0;
    memset(room->dx, 0, room->rows * d * sizeof(float));
    for (long from = 0; from < room->rows; from += GROUP_ROWS) {
        long n = room->rows - from < GROUP_ROWS ? room->rows - from : GROUP_ROWS;
        normalize(n, d, last->x + from * d, gain, room->normed, last->scale + from);
        product(n, columns, d, room->normed, d, 1, room->embedding, 0, room->logits, ld, 0);
        for (long r = 0; r < n; r++) {
            float *row = room->logits + r * ld;
            long target = targets[from + r];
            if (target < 0) {
                memset(row, 0, columns * sizeof(float));
                continue;
            }
            for (long k = vocab; k < columns; k++) row[k] = row[0]; /* no words: must not be the largest */
            float most = largest(row, columns), wanted = row[target] - most;
            eight totals = {0};
            for (long k = 0; k < columns; k += 8) {
                eight chance = exponential(load(row + k) - most);
                if (k + 8 > vocab) chance = pick(SEEN[vocab - k - 1], chance, all(0.0f));
                store(row + k, chance);
                totals += chance;
            }
            float total = sum(totals), part = (float)share / total;
            loss += (double)logf(total) - wanted;
            for (long k = 0; k < columns; k += 8) store(row + k, load(row + k) * part);
            row[target] -= (float)share;
        }
        product(n, d, vocab, room->logits, ld, 1, pass->weights, d, room->d_normed, d, 0);
        product(columns, d, n, room->logits, 1, ld, room->normed, d, room->d_embedding, d, 1);
        normalize_backward(n, d, last->x + from * d, gain, last->scale + from, room->d_normed, room->dx + from * d, d_gain);
    }
    return loss;
}

/* ------------------------------------------------------------------ loss and gradient of a step's text
   blocks (batch, length + 1) token ids; gradient (P,) is overwritten. Returns the mean loss in nats a token. */
static double loss_gradient(const Shape *s, Room *room, const Pass *pass, const long *blocks, long batch, long length) {
    long d = s->width, inner = s->heads * HEAD, span = room->span, at_once = room->rows / span;
    long targets[room->rows];
    double loss = 0.0, share = 1.0 / (double)(batch * length);
    for (long l = 0; l < s->layers; l++) {
        Layer w = layer_of(s, pass->weights, l);
        pack(3 * inner, d, w.qkv, room->packed[l].qkv);
        pack(d, inner, w.out, room->packed[l].out);
        pack(2 * s->hidden, d, w.gate_up, room->packed[l].gate_up);
        pack(d, s->hidden, w.down, room->packed[l].down);
    }
    pack(s->vocab, d, pass->weights, room->embedding);
    memset(room->d_embedding, 0, padded(s->vocab) * d * sizeof(float));
    float *rest = layer_of(s, pass->gradient, 0).norm;
    memset(rest, 0, (layer_of(s, pass->gradient, s->layers).norm + d - rest) * sizeof(float));
    for (long first = 0; first < batch; first += at_once) {
        long here = batch - first < at_once ? batch - first : at_once;
        room->rows = here * span;
        for (long r = 0; r < room->rows; r++) {
            const long *text = blocks + (first + r / span) * (length + 1) + r % span;
            float *x = room->kept[0].x + r * d;
            targets[r] = r % span < length ? text[1] : -1;
            if (targets[r] < 0) memset(x, 0, d * sizeof(float));
            else memcpy(x, pass->weights + text[0] * d, d * sizeof(float));
        }
        for (long l = 0; l < s->layers; l++) forward(s, room, pass, l);
        loss += head(s, room, pass, targets, share);
        for (long l = s->layers - 1; l >= 0; l--) backward(s, room, pass, l);
        for (long r = 0; r < room->rows; r++) {
            if (targets[r] < 0) continue;
            long token = blocks[(first + r / span) * (length + 1) + r % span];
            float *one = room->d_embedding + token * d;
            for (long i = 0; i < d; i += 8) store(one + i, load(one + i) + load(room->dx + r * d + i));
        }
    }
    room->rows = at_once * span;
    memcpy(pass->gradient, room->d_embedding, s->vocab * d * sizeof(float));
    return loss * share;
}

/* ------------------------------------------------------------------ a client's visit */
typedef struct {
    Shape shape;
    long batch, length, params;       /* sequences and tokens of a step; length of the flat vectors */
    long adam, centred;               /* AdamW, or SGD; how many pieces are centred */
    float beta1, beta2, epsilon, clip, momentum, pull;
    const float *cosine, *sine;       /* rotary tables, (length, HEAD), length padded */
    const float *decay;               /* (P,) weight decay of each weight, or none */
    const float *shift, *origin;      /* (P,) added to every gradient, or none; where the spring `pull` leads back to */
    const long *pieces;               /* (centred, 3) start, stop and rows of each centred piece */
    float *weights, *first, *second;  /* (P,) and the optimizer's vectors, or none */
    float *gradient, *total;          /* (P,) scratch; (P,) sum of the unchanged gradients, or none */
    float *room;                      /* room_for(...) floats of scratch */
} Visit;

/* The gradient as the algorithm changes it: g + shift + pull (w - origin), then rows of the centred pieces less their
   means (federated/centralisation.py). */
static void correct(const Visit *v) {
    float *g = v->gradient;
    if (v->shift)
        for (long i = 0; i < v->params; i++) g[i] += v->shift[i];
    if (v->pull != 0.0f)
        for (long i = 0; i < v->params; i++) g[i] += v->pull * (v->weights[i] - v->origin[i]);
    for (long p = 0; p < v->centred; p++) {
        long start = v->pieces[3 * p], rows = v->pieces[3 * p + 2], width = (v->pieces[3 * p + 1] - start) / rows;
        for (float *row = g + start; row < g + v->pieces[3 * p + 1]; row += width) {
            double mean = 0.0;
            for (long i = 0; i < width; i++) mean += row[i];
            for (long i = 0; i < width; i++) row[i] -= (float)(mean / (double)width);
        }
    }
}

static float norm_of(const float *x, long n) {
    double all_of_them = 0.0;
    long i = 0;
    for (; i + 1024 <= n; i += 1024) { /* short sums in float, long ones in double */
        eight squares[4] = {{0}};
        for (long k = i; k < i + 1024; k += 32)
            for (int j = 0; j < 4; j++) squares[j] += load(x + k + 8 * j) * load(x + k + 8 * j);
        all_of_them += sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    }
    for (; i < n; i++) all_of_them += (double)x[i] * x[i];
    return (float)sqrt(all_of_them);
}

/* Clip, decay, and AdamW or SGD with momentum, as federated/client_optimizer.py; `rates` are the step's learning rate, the same
   over 1 - beta1^t, and 1 over 1 - beta2^t. */
static void take_step(const Visit *v, const float *rates) {
    float norm = norm_of(v->gradient, v->params), shrink = norm > v->clip ? v->clip / norm : 1.0f;
    float rate = rates[0], first_rate = rates[1], second_scale = rates[2];
    float *restrict w = v->weights, *restrict first = v->first, *restrict second = v->second;
    const float *restrict g = v->gradient, *restrict decay = v->decay;
    if (decay)
        for (long i = 0; i < v->params; i++) w[i] -= rate * w[i] * decay[i];
    if (v->adam) {
        float new1 = 1.0f - v->beta1, beta2 = v->beta2, new2 = 1.0f - v->beta2, epsilon = v->epsilon;
        for (long i = 0; i < v->params; i++) {
            float own = g[i] * shrink;
            first[i] += new1 * (own - first[i]);
            second[i] = beta2 * second[i] + new2 * own * own;
            w[i] -= first_rate * first[i] / (sqrtf(second[i] * second_scale) + epsilon);
        }
    } else if (first) {
        float momentum = v->momentum;
        for (long i = 0; i < v->params; i++) {
            first[i] = momentum * first[i] + g[i] * shrink;
            w[i] -= rate * first[i];
        }
    } else {
        for (long i = 0; i < v->params; i++) w[i] -= rate * shrink * g[i];
    }
}

/* ------------------------------------------------------------------ what Python calls */
/* Floats of scratch that a visit needs. */
long room_for(const Shape *s, long batch, long length) { return lay_out(s, batch, length, 0).used; }

/* `steps` local steps on blocks (steps, batch, length + 1) with rates (steps, 3). Returns the losses' sum. */
double train(const Visit *v, long steps, const long *blocks, const float *rates) {
    Room room = lay_out(&v->shape, v->batch, v->length, v->room);
    Pass pass = {v->weights, v->cosine, v->sine, v->gradient};
    double loss = 0.0;
    for (long step = 0; step < steps; step++, blocks += v->batch * (v->length + 1), rates += 3) {
        loss += loss_gradient(&v->shape, &room, &pass, blocks, v->batch, v->length);
        if (v->total)
            for (long i = 0; i < v->params; i++) v->total[i] += v->gradient[i];
        correct(v);
        take_step(v, rates);
    }
    return loss;
}

/* Loss and gradient alone, for those who check them. */
double gradient_of(const Visit *v, const long *blocks) {
    Room room = lay_out(&v->shape, v->batch, v->length, v->room);
    Pass pass = {v->weights, v->cosine, v->sine, v->gradient};
    return loss_gradient(&v->shape, &room, &pass, blocks, v->batch, v->length);
}
