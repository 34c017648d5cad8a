/* The decoder forward, as in models/decoder.py, for a group of sequences at a time whose activations stay in the cache.

   Rows are padded to a multiple of eight with rows of zeros. What the backward pass needs is kept. */

#include "products.h"

enum { GROUP_ROWS = 128, WIDE = 128 }; /* rows of a group, about, and twice as many from which width on */
enum { LOSS_ROWS = 64, QUERIES = 16 };  /* rows whose logits, queries whose scores are at hand at once */
static const float NORM_EPSILON = 1e-5f;

typedef struct {
    long vocab, width, layers, heads, hidden;
} Shape;

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
    float *keys_t, *values_t, *d_keys_t, *d_values_t, *scores, *d_scores;
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
    long most = d < WIDE ? GROUP_ROWS : 2 * GROUP_ROWS, together = most / span < 1 ? 1 : most / span;
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
    long wider = span + QUERIES; /* of a row of scores, and off powers of two */
    room.keys_t = take(&room, base, HEAD * wider), room.values_t = take(&room, base, HEAD * wider);
    room.d_keys_t = take(&room, base, HEAD * wider), room.d_values_t = take(&room, base, HEAD * wider);
    room.scores = take(&room, base, QUERIES * wider), room.d_scores = take(&room, base, QUERIES * wider);
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

/* ------------------------------------------------------------------ attention */
#define TURN(TYPE, AT)                                                                             \
    {                                                                                              \
        TYPE a = *(TYPE *)(one + AT), b = *(TYPE *)(two + AT), angle = sign * *(TYPE *)(z + AT);   \
        *(TYPE *)(one + AT) = a * *(TYPE *)(c + AT) - b * angle;                                   \
        *(TYPE *)(two + AT) = b * *(TYPE *)(c + AT) + a * angle;                                   \
    }
/* Turn the two halves of a row's queries and keys by its position's angles, back again where `sign` is -1. */
static void turn(const Shape *s, const float *c, const float *z, float *row, float sign) {
    for (long j = 0; j < 2 * s->heads; j++) {
        float *one = row + j * HEAD, *two = one + HEAD / 2;
        TURN(eight, 0)
        TURN(four, 8)
    }
}

static void rotate(const Shape *s, const Room *room, const float *cosine, const float *sine, float *qkv, float sign) {
    for (long r = 0; r < room->rows; r++) {
        long at = r % room->span * HEAD;
        turn(s, cosine + at, sine + at, qkv + r * 3 * s->heads * HEAD, sign);
    }
}

/* One head of one sequence: what its queries mix together of its values. Some queries at a time, a lane each, so that
   a query's scores are added up without crossing lanes. Beyond the sequence's end the queries are zeros. */
static void attend(const Shape *s, const Room *room, const float *q, float *mixed, float *most, float *share) {
    long inner = s->heads * HEAD, ld = 3 * inner, span = room->span, lds = span + QUERIES;
    const float *keys = q + inner, *values = keys + inner, scale = 1.0f / sqrtf(HEAD);
    float *queries_t = room->keys_t, *mixed_t = room->values_t, *scores = room->scores;
    transpose(span, HEAD, q, ld, queries_t, lds);
    for (long c = 0; c < HEAD; c++) memset(queries_t + c * lds + span, 0, QUERIES * sizeof(float));
    for (long i = 0; i < span; i += QUERIES) {
        long here = span - i < QUERIES ? span - i : QUERIES, end = i + here; /* keys that the last query sees */
        float peaks[QUERIES], shares[QUERIES];
        product(end, QUERIES, HEAD, keys, ld, 1, queries_t + i, lds, scores, QUERIES, 0);
        for (long j = 0; j < QUERIES; j += BROAD) {
            float *column = scores + j;
            broad peak = load_broad(column), total = {0};
            for (long k = 1; k < end; k++) {
                broad score = load_broad(column + k * QUERIES);
                peak = larger(k > i + j ? split(k - i - j, peak, score) : score, peak);
            }
            peak *= scale;
            for (long k = 0; k < end; k++) {
                broad chance = exponential_broad(load_broad(column + k * QUERIES) * scale - peak);
                if (k > i + j) chance = split(k - i - j, (broad){0}, chance);
                store_broad(column + k * QUERIES, chance);
                total += chance;
            }
            store_broad(peaks + j, peak), store_broad(shares + j, 1.0f / total);
        }
        product(HEAD, QUERIES, end, values, 1, ld, scores, QUERIES, mixed_t, QUERIES, 0);
        for (long c = 0; c < HEAD; c++)
            for (long j = 0; j < QUERIES; j += BROAD) {
                float *one = mixed_t + c * QUERIES + j;
                store_broad(one, load_broad(one) * load_broad(shares + j));
            }
        transpose(HEAD, here, mixed_t, QUERIES, mixed + i * inner, inner);
        memcpy(most + i, peaks, here * sizeof(float)), memcpy(share + i, shares, here * sizeof(float));
    }
}

/* ------------------------------------------------------------------ gated hidden layer */
#define GATE(TYPE, EXP, I)                                                                                          \
    {                                                                                                               \
        TYPE g = *(const TYPE *)(gates + (I));                                                                       \
        *(TYPE *)(active + (I)) = g / (1.0f + EXP(-g)) * *(const TYPE *)(gates + hidden + (I));                      \
    }
static void gate(long rows, long hidden, const float *gates, float *active) {
    for (long r = 0; r < rows; r++, gates += 2 * hidden, active += hidden) {
        long i = 0;
        for (; i + BROAD <= hidden; i += BROAD) GATE(broad, exponential_broad, i)
        if (i < hidden) GATE(eight, exponential, i)
    }
}

/* ------------------------------------------------------------------ one group of sequences: layers forward and back */
typedef struct {
    const float *weights, *cosine, *sine;
    float *gradient;
} Pass;

/* Queries, keys and values of a layer, not yet turned. */
static void before_attention(const Shape *s, const Room *room, const Pass *pass, long layer) {
    long n = room->rows, d = s->width, inner = s->heads * HEAD;
    const Kept *k = &room->kept[layer];
    normalize(n, d, k->x, layer_of(s, pass->weights, layer).norm, k->normed, k->scale);
    product(n, 3 * inner, d, k->normed, d, 1, room->packed[layer].qkv, 0, k->qkv, 3 * inner, 0);
}

/* From what attention mixed to the next layer's input. */
static void after_attention(const Shape *s, const Room *room, const Pass *pass, long layer) {
    long n = room->rows, d = s->width, inner = s->heads * HEAD, hidden = s->hidden;
    Layer w = layer_of(s, pass->weights, layer);
    const Layer *t = &room->packed[layer];
    const Kept *k = &room->kept[layer];
    memcpy(k->middle, k->x, n * d * sizeof(float));
    product(n, d, inner, k->mixed, inner, 1, t->out, 0, k->middle, d, 1);
    normalize(n, d, k->middle, w.mlp_norm, k->mlp_normed, k->mlp_scale);
    product(n, 2 * hidden, d, k->mlp_normed, d, 1, t->gate_up, 0, k->gates, 2 * hidden, 0);
    gate(n, hidden, k->gates, k->active);
    memcpy(k[1].x, k->middle, n * d * sizeof(float));
    product(n, d, hidden, k->active, hidden, 1, t->down, 0, k[1].x, d, 1);
}

static void forward(const Shape *s, const Room *room, const Pass *pass, long layer) {
    long n = room->rows, inner = s->heads * HEAD;
    const Kept *k = &room->kept[layer];
    before_attention(s, room, pass, layer);
    rotate(s, room, pass->cosine, pass->sine, k->qkv, 1.0f);
    for (long row = 0; row < n; row += room->span)
        for (long j = 0; j < s->heads; j++)
            attend(s, room, k->qkv + row * 3 * inner + j * HEAD, k->mixed + row * inner + j * HEAD,
                   k->most + j * n + row, k->share + j * n + row);
    after_attention(s, room, pass, layer);
}

/* All weights as the forward pass reads them. */
static void pack_weights(const Shape *s, const Room *room, const float *weights) {
    long d = s->width, inner = s->heads * HEAD;
    for (long l = 0; l < s->layers; l++) {
        Layer w = layer_of(s, weights, l);
        pack(3 * inner, d, w.qkv, room->packed[l].qkv);
        pack(d, inner, w.out, room->packed[l].out);
        pack(2 * s->hidden, d, w.gate_up, room->packed[l].gate_up);
        pack(d, s->hidden, w.down, room->packed[l].down);
    }
    pack(s->vocab, d, weights, room->embedding);
}

/* Logits of `n` rows that start at row `from` of the decoder's output, at most GROUP_ROWS of them; their norms stay in
   room->normed. */
static void logits_of(const Shape *s, const Room *room, const Pass *pass, long from, long n) {
    long d = s->width;
    const Kept *last = &room->kept[s->layers];
    normalize(n, d, last->x + from * d, layer_of(s, pass->weights, s->layers).norm, room->normed, last->scale + from);
    product(n, padded(s->vocab), d, room->normed, d, 1, room->embedding, 0, room->logits, room->words, 0);
}

/* A row of logits becomes e^(logit - largest), zero beyond the vocabulary; returns the sum, and the largest in `most`. */
static float chances_of(const Shape *s, float *row, float *most) {
    long vocab = s->vocab, columns = (vocab + BROAD - 1) / BROAD * BROAD;
    for (long k = vocab; k < columns; k++) row[k] = row[0]; /* no words: must not be the largest */
    *most = largest(row, columns);
    broad totals = {0};
    for (long k = 0; k < columns; k += BROAD) {
        broad chance = exponential_broad(load_broad(row + k) - *most);
        if (k + BROAD > vocab) chance = split(vocab - k, chance, (broad){0});
        store_broad(row + k, chance);
        totals += chance;
    }
    return sum_broad(totals);
}
