/* How does a client take a step of our decoder without asking a library for a thousand small kernels?

   Loss, gradient and optimizer step of one client, float32, as written in models/decoder.py and
   federated/client_optimizer.py. The text of a step is taken a few sequences at a time: forward, loss and backward of one
   group stay in the cache, and the groups' gradients add up. Rows of padding have gradients of zero. */

#include "decoder.h"

/* ------------------------------------------------------------------ backward, stage by stage
   A norm: adds to the gradients of the input and of the gain. */
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

/* A head of attention (attend) backward, some queries at a time: their chances are made again rather than kept. */
static void attend_backward(const Shape *s, const Room *room, const float *q, const float *mixed, const float *most,
                            const float *share, const float *d_mixed, float *dq) {
    long inner = s->heads * HEAD, ld = 3 * inner, span = room->span, lds = span + QUERIES;
    const float *keys = q + inner, *values = keys + inner, scale = 1.0f / sqrtf(HEAD);
    float *scores = room->scores, *d_scores = room->d_scores, *d_keys_t = room->d_keys_t, *d_values_t = room->d_values_t;
    transpose(span, HEAD, keys, ld, room->keys_t, lds);
    transpose(span, HEAD, values, ld, room->values_t, lds);
    memset(d_keys_t, 0, HEAD * lds * sizeof(float));
    memset(d_values_t, 0, HEAD * lds * sizeof(float));
    for (long i = 0; i < span; i += QUERIES) {
        long here = span - i < QUERIES ? span - i : QUERIES, end = i + here; /* keys that the last query sees */
        const float *d_of = d_mixed + i * inner;
        product(here, end, HEAD, q + i * ld, ld, 1, room->keys_t, lds, scores, lds, 0);
        product(here, end, HEAD, d_of, inner, 1, room->values_t, lds, d_scores, lds, 0);
        for (long r = 0; r < here; r++, mixed += inner) {
            float *row = scores + r * lds, *d_row = d_scores + r * lds, own = share[i + r];
            eight dots = {0};
            for (long c = 0; c < HEAD; c += 8) dots += load(mixed + c) * load(d_of + r * inner + c);
            float mean = sum(dots);
            for (long k = 0; k < end; k += BROAD) {
                broad chance = exponential_broad(load_broad(row + k) * scale - most[i + r]) * own;
                if (k + BROAD > i) chance = split(i + r + 1 - k, chance, (broad){0});
                store_broad(row + k, chance);
                store_broad(d_row + k, chance * (load_broad(d_row + k) - mean) * scale);
            }
        }
        product(here, HEAD, end, d_scores, lds, 1, keys, ld, dq + i * ld, ld, 0);
        product(HEAD, end, here, q + i * ld, 1, ld, d_scores, lds, d_keys_t, lds, 1);
        product(HEAD, end, here, d_of, 1, inner, scores, lds, d_values_t, lds, 1);
    }
    transpose(HEAD, span, d_keys_t, lds, dq + inner, ld);
    transpose(HEAD, span, d_values_t, lds, dq + 2 * inner, ld);
}

#define GATE_BACKWARD(TYPE, EXP, I)                                                                                  \
    {                                                                                                               \
        TYPE g = *(const TYPE *)(gates + (I)), up = *(const TYPE *)(gates + hidden + (I));                           \
        TYPE d = *(const TYPE *)(d_active + (I)), open = 1.0f / (1.0f + EXP(-g));                                    \
        *(TYPE *)(d_gates + hidden + (I)) = d * g * open;                                                            \
        *(TYPE *)(d_gates + (I)) = d * up * open * (1.0f + g * (1.0f - open));                                       \
    }
static void gate_backward(long rows, long hidden, const float *gates, const float *d_active, float *d_gates) {
    for (long r = 0; r < rows; r++, gates += 2 * hidden, d_gates += 2 * hidden, d_active += hidden) {
        long i = 0;
        for (; i + BROAD <= hidden; i += BROAD) GATE_BACKWARD(broad, exponential_broad, i)
        if (i < hidden) GATE_BACKWARD(eight, exponential, i)
    }
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

static void scale_rows(long rows, long d, const float *by, float *x) {
    for (long r = 0; r < rows; r++, x += d)
        for (long i = 0; i < d; i += 8) store(x + i, load(x + i) * by[r]);
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
    float parts[LOSS_ROWS]; /* what the rows of the logits' gradient are to be multiplied by */
    memset(room->dx, 0, room->rows * d * sizeof(float));
    for (long from = 0; from < room->rows; from += LOSS_ROWS) {
        long n = room->rows - from < LOSS_ROWS ? room->rows - from : LOSS_ROWS;
        logits_of(s, room, pass, from, n);
        for (long r = 0; r < n; r++) {
            float *row = room->logits + r * ld, most;
            long target = targets[from + r];
            parts[r] = 0.0f;
            if (target < 0) {
                memset(row, 0, columns * sizeof(float));
                continue;
            }
            float wanted = row[target], total = chances_of(s, row, &most);
            loss += (double)logf(total) - (wanted - most);
            row[target] -= total;
            parts[r] = (float)share / total;
        }
        product(n, d, vocab, room->logits, ld, 1, pass->weights, d, room->d_normed, d, 0);
        scale_rows(n, d, parts, room->d_normed);
        scale_rows(n, d, parts, room->normed);
        product(columns, d, n, room->logits, 1, ld, room->normed, d, room->d_embedding, d, 1);
        normalize_backward(n, d, last->x + from * d, gain, last->scale + from, room->d_normed, room->dx + from * d, d_gain);
    }
    return loss;
}

/* ------------------------------------------------------------------ loss and gradient of a step's text
   blocks (batch, length + 1) token ids; gradient (P,) is overwritten. Returns the mean loss in nats a token. */
static double loss_gradient(const Shape *s, Room *room, const Pass *pass, const long *blocks, long batch, long length) {
    long d = s->width, span = room->span, at_once = room->rows / span;
    long targets[room->rows];
    double loss = 0.0, share = 1.0 / (double)(batch * length);
    pack_weights(s, room, pass->weights);
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
    long params = v->params;
    if (decay)
        for (long i = 0; i < params; i++) w[i] -= rate * w[i] * decay[i];
    if (v->adam) {
        float new1 = 1.0f - v->beta1, beta2 = v->beta2, new2 = 1.0f - v->beta2, epsilon = v->epsilon;
        for (long i = 0; i < params; i++) {
            float own = g[i] * shrink;
            first[i] += new1 * (own - first[i]);
            second[i] = beta2 * second[i] + new2 * own * own;
            w[i] -= first_rate * first[i] / (sqrtf(second[i] * second_scale) + epsilon);
        }
    } else if (first) {
        float momentum = v->momentum;
        for (long i = 0; i < params; i++) {
            first[i] = momentum * first[i] + g[i] * shrink;
            w[i] -= rate * first[i];
        }
    } else {
        for (long i = 0; i < params; i++) w[i] -= rate * shrink * g[i];
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
    Mode before = flush_tiny();
    for (long step = 0; step < steps; step++, blocks += v->batch * (v->length + 1), rates += 3) {
        loss += loss_gradient(&v->shape, &room, &pass, blocks, v->batch, v->length);
        if (v->total)
            for (long i = 0; i < v->params; i++) v->total[i] += v->gradient[i];
        correct(v);
        take_step(v, rates);
    }
    set_mode(before);
    return loss;
}

/* Loss and gradient alone, for those who check them. */
double gradient_of(const Visit *v, const long *blocks) {
    Room room = lay_out(&v->shape, v->batch, v->length, v->room);
    Pass pass = {v->weights, v->cosine, v->sine, v->gradient};
    Mode before = flush_tiny();
    double loss = loss_gradient(&v->shape, &room, &pass, blocks, v->batch, v->length);
    set_mode(before);
    return loss;
}
