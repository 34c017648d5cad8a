/* The decoder without gradients: losses of given text, and rows of text written token by token.

   Keys and values of what is written lie in pages of PAGE positions, so that memory grows with what is written and all
   samples of a prompt share the prompt's pages. A page holds, for every layer and head, keys (HEAD, PAGE) and values
   (PAGE, HEAD). A row's table lists the pages of its prompt, of which the last may be part empty, then its own. */

#include "decoder.h"

enum { PAGE = 16, CHUNK = 64 }; /* positions of a page; pages that are made at once */

typedef struct {
    Shape shape;
    long length, width;         /* most positions of a row; entries of a row's table */
    const float *weights;       /* (P,) */
    const float *cosine, *sine; /* (length, HEAD) rotary tables, length padded */
    float *const *chunks;       /* CHUNK pages each */
    float *room;                /* room_to_read(...) floats of scratch, in which the packed weights stay */
} Reader;

INLINE float *in_page(const Reader *reader, long page, long layer, long head) {
    const Shape *s = &reader->shape;
    return reader->chunks[page / CHUNK] + ((page % CHUNK * s->layers + layer) * s->heads + head) * 2 * HEAD * PAGE;
}

INLINE Room room_of(const Reader *reader) { return lay_out(&reader->shape, GROUP_ROWS, reader->length, reader->room); }

/* As many of the sequences from `first` on as make a group; returns the first of the next one. `tokens` lie end to end,
   sequence i at offsets[i] to offsets[i + 1]; the `spare` last tokens of each are not read. */
static long read_group(const Reader *reader, Room *room, long capacity, long first, long n, const long *tokens,
                       const long *offsets, long spare) {
    const Shape *s = &reader->shape;
    Pass pass = {reader->weights, reader->cosine, reader->sine, 0};
    long end = first, span = 0;
    for (; end < n && end - first < GROUP_ROWS; end++) {
        long longer = most_of(span, padded(offsets[end + 1] - offsets[end] - spare));
        if (end > first && longer * (end + 1 - first) > capacity) break;
        span = longer;
    }
    room->span = span, room->rows = span * (end - first);
    memset(room->kept[0].x, 0, room->rows * s->width * sizeof(float));
    for (long i = first; i < end; i++)
        for (long p = 0; p < offsets[i + 1] - offsets[i] - spare; p++)
            memcpy(room->kept[0].x + ((i - first) * span + p) * s->width,
                   reader->weights + tokens[offsets[i] + p] * s->width, s->width * sizeof(float));
    for (long l = 0; l < s->layers; l++) forward(s, room, &pass, l);
    return end;
}

/* One head of one row: what it mixes of the pages' values. It sees `prompt` positions of shared pages, then `own`. */
static void attend_pages(const Reader *reader, long layer, long head, const float *q, const long *table, long prompt,
                         long own, float *scores, float *mixed) {
    const float scale = 1.0f / sqrtf(HEAD);
    long shared = (prompt + PAGE - 1) / PAGE, pages = shared + (own + PAGE - 1) / PAGE;
    for (long j = 0; j < pages; j++) {
        const float *keys = in_page(reader, table[j], layer, head);
        long count = j < shared ? prompt - j * PAGE : own - (j - shared) * PAGE;
        eight low = {0}, high = {0};
        for (long k = 0; k < HEAD; k++) {
            low += q[k] * load(keys + k * PAGE);
            high += q[k] * load(keys + k * PAGE + 8);
        }
        store(scores + j * PAGE, low * scale);
        store(scores + j * PAGE + 8, high * scale);
        for (long k = count; k < PAGE; k++) scores[j * PAGE + k] = -INFINITY; /* nothing there yet */
    }
    float most = largest(scores, pages * PAGE);
    eight total = {0}, out[3] = {{0}};
    for (long j = 0; j < pages; j++) {
        const float *values = in_page(reader, table[j], layer, head) + HEAD * PAGE;
        long count = j < shared ? prompt - j * PAGE : own - (j - shared) * PAGE;
        for (long k = 0; k < PAGE; k += 8) store(scores + j * PAGE + k, exponential(load(scores + j * PAGE + k) - most));
        for (long k = count; k < PAGE; k++) scores[j * PAGE + k] = 0.0f;
        total += load(scores + j * PAGE) + load(scores + j * PAGE + 8);
        for (long k = 0; k < count && k < PAGE; k++)
            for (int i = 0; i < 3; i++) out[i] += scores[j * PAGE + k] * load(values + k * HEAD + 8 * i);
    }
    float share = 1.0f / sum(total);
    for (int i = 0; i < 3; i++) store(mixed + 8 * i, out[i] * share);
}

static void put_in_page(const Reader *reader, long page, long slot, long layer, const float *qkv) {
    long inner = reader->shape.heads * HEAD;
    for (long j = 0; j < reader->shape.heads; j++) {
        float *keys = in_page(reader, page, layer, j), *values = keys + HEAD * PAGE;
        for (long k = 0; k < HEAD; k++) keys[k * PAGE + slot] = qkv[inner + j * HEAD + k];
        memcpy(values + slot * HEAD, qkv + 2 * inner + j * HEAD, HEAD * sizeof(float));
    }
}

/* ------------------------------------------------------------------ what Python calls */
/* Floats of scratch that reading sequences of at most `length` tokens needs. */
long room_to_read(const Shape *s, long length) { return lay_out(s, GROUP_ROWS, length, 0).used; }

/* The weights as they are read, before anything else. */
void open_reader(const Reader *reader) {
    Room room = room_of(reader);
    pack_weights(&reader->shape, &room, reader->weights);
}

/* Loss of every token but the first of each of `n` sequences, in nats, end to end: offsets[n] - n numbers. */
void token_losses(const Reader *reader, long n, const long *tokens, const long *offsets, float *losses) {
    const Shape *s = &reader->shape;
    Room room = room_of(reader);
    Pass pass = {reader->weights, reader->cosine, reader->sine, 0};
    Mode before = flush_tiny();
    for (long first = 0, end, capacity = room.rows; first < n; first = end) {
        end = read_group(reader, &room, capacity, first, n, tokens, offsets, 1);
        for (long from = 0; from < room.rows; from += GROUP_ROWS) {
            long here = room.rows - from < GROUP_ROWS ? room.rows - from : GROUP_ROWS;
            logits_of(s, &room, &pass, from, here);
            for (long r = 0; r < here; r++) {
                long i = first + (from + r) / room.span, p = (from + r) % room.span;
                if (p >= offsets[i + 1] - offsets[i] - 1) continue;
                float *row = room.logits + r * room.words, most;
                float wanted = row[tokens[offsets[i] + p + 1]], total = chances_of(s, row, &most);
                losses[offsets[i] - i + p] = logf(total) - (wanted - most);
            }
        }
    }
    set_mode(before);
}

/* Prompts into their pages, table (n, width); logits (n, vocab) of the token after each. */
void read_prompts(const Reader *reader, long n, const long *tokens, const long *offsets, const long *table,
                  float *logits) {
    const Shape *s = &reader->shape;
    long d = s->width;
    Room room = room_of(reader);
    Pass pass = {reader->weights, reader->cosine, reader->sine, 0};
    Mode before = flush_tiny();
    for (long first = 0, end, capacity = room.rows; first < n; first = end) {
        end = read_group(reader, &room, capacity, first, n, tokens, offsets, 0);
        float *x = room.kept[s->layers].x;
        for (long i = first; i < end; i++) {
            long start = (i - first) * room.span, length = offsets[i + 1] - offsets[i];
            for (long l = 0; l < s->layers; l++)
                for (long p = 0; p < length; p++)
                    put_in_page(reader, table[i * reader->width + p / PAGE], p % PAGE, l,
                                room.kept[l].qkv + (start + p) * 3 * s->heads * HEAD);
            memmove(x + (i - first) * d, x + (start + length - 1) * d, d * sizeof(float)); /* the last row of each */
        }
        logits_of(s, &room, &pass, 0, padded(end - first));
        for (long i = first; i < end; i++)
            memcpy(logits + i * s->vocab, room.logits + (i - first) * room.words, s->vocab * sizeof(float));
    }
    set_mode(before);
}

/* One more token in each of `rows` rows: at `positions`, after prompts of `prompts` tokens; logits (rows, vocab). */
void write_tokens(const Reader *reader, long rows, const long *tokens, const long *positions, const long *prompts,
                  const long *table, float *logits) {
    const Shape *s = &reader->shape;
    long d = s->width, inner = s->heads * HEAD;
    Room room = room_of(reader);
    Pass pass = {reader->weights, reader->cosine, reader->sine, 0};
    long at_once = room.rows < GROUP_ROWS ? room.rows : GROUP_ROWS;
    Mode before = flush_tiny();
    for (long first = 0; first < rows; first += at_once) {
        long here = rows - first < at_once ? rows - first : at_once;
        room.rows = padded(here);
        memset(room.kept[0].x, 0, room.rows * d * sizeof(float));
        for (long r = 0; r < here; r++)
            memcpy(room.kept[0].x + r * d, reader->weights + tokens[first + r] * d, d * sizeof(float));
        for (long l = 0; l < s->layers; l++) {
            const Kept *k = &room.kept[l];
            before_attention(s, &room, &pass, l);
            memset(k->mixed, 0, room.rows * inner * sizeof(float));
            for (long r = 0; r < here; r++) {
                long at = positions[first + r], prompt = prompts[first + r], own = at - prompt;
                const long *pages = table + (first + r) * reader->width;
                float *row = k->qkv + r * 3 * inner;
                turn(s, reader->cosine + at * HEAD, reader->sine + at * HEAD, row, 1.0f);
                put_in_page(reader, pages[(prompt + PAGE - 1) / PAGE + own / PAGE], own % PAGE, l, row);
                for (long j = 0; j < s->heads; j++)
                    attend_pages(reader, l, j, row + j * HEAD, pages, prompt, own + 1, room.scores,
                                 k->mixed + r * inner + j * HEAD);
            }
            after_attention(s, &room, &pass, l);
        }
        logits_of(s, &room, &pass, 0, room.rows);
        for (long r = 0; r < here; r++)
            memcpy(logits + (first + r) * s->vocab, room.logits + r * room.words, s->vocab * sizeof(float));
    }
    set_mode(before);
}

/* The token of each row at which the cumulative chance, of logits divided by the temperature, passes its uniform number
   (evaluation/token_sampling.py). */
void draw_tokens(const Reader *reader, long rows, const float *logits, const double *uniforms, float temperature,
                 long *tokens) {
    const Shape *s = &reader->shape;
    Room room = room_of(reader);
    for (long r = 0; r < rows; r++) {
        float *row = room.logits, most;
        for (long k = 0; k < s->vocab; k++) row[k] = logits[r * s->vocab + k] / temperature;
        chances_of(s, row, &most);
        double total = 0.0, passed = 0.0;
        for (long k = 0; k < s->vocab; k++) total += row[k];
        long token = 0;
        for (double wanted = uniforms[r] * total; token < s->vocab - 1; token++)
            if ((passed += row[token]) > wanted) break;
        tokens[r] = token;
    }
}
