/* Normalises text step by step and keeps the origin of each byte. Unicode forms are computed
 * segment by segment: a segment is a character with the marks that compose with it, so the origins
 * stay exact and long text needs no second copy in 32-bit code points. */
#include "engine/tokens/normalize.h"

#include "base/json.h"

#include <string.h>
#include <utf8proc.h>

/* Characters of a segment. A longer run of marks is divided, which differs from the standard only
 * for text made to do that. */
enum { SEGMENT_CHARS_MAX = 512 };

static err read_text(const char **out, uint32_t *size, struct arena *arena, const json_t *json,
                     const char *where)
{
    if (!json_is_string(json)) return err_make(ERR_INPUT, "%s: expected a string", where);
    TRY(arena_text(out, arena, json_string_value(json), json_string_length(json)));
    *size = (uint32_t)json_string_length(json);
    return ERR_NONE;
}

/* An empty pattern would match everywhere. A pattern that is a regular expression is refused. */
static err read_replace(struct normalize_step *step, struct arena *arena, const json_t *json)
{
    const json_t *pattern = json_object_get(json_object_get(json, "pattern"), "String");
    if (!pattern)
        return err_make(ERR_INPUT, "normalizer.Replace: only a String pattern is supported");
    TRY(read_text(&step->pattern, &step->pattern_size, arena, pattern, "normalizer.pattern"));
    if (step->pattern_size == 0) return err_make(ERR_INPUT, "normalizer.pattern: is empty");
    return read_text(&step->content, &step->content_size, arena, json_object_get(json, "content"),
                     "normalizer.content");
}

static err read_step(struct normalize *out, struct arena *arena, const json_t *json, int depth);

/* The depth is limited, because the file is not trusted and the reading is recursive. */
static err read_sequence(struct normalize *out, struct arena *arena, const json_t *json, int depth)
{
    const json_t *list = json_object_get(json, "normalizers"), *item;
    size_t i;
    if (!json_is_array(list) || depth > 4)
        return err_make(ERR_INPUT, "normalizer.normalizers: expected a list, at most 4 deep");
    json_array_foreach(list, i, item) TRY(read_step(out, arena, item, depth + 1));
    return ERR_NONE;
}

static err read_step(struct normalize *out, struct arena *arena, const json_t *json, int depth)
{
    static const struct {
        const char *name;
        enum normalize_kind kind;
    } kinds[] = {
        {"NFC", NORMALIZE_NFC},         {"NFD", NORMALIZE_NFD},
        {"NFKC", NORMALIZE_NFKC},       {"NFKD", NORMALIZE_NFKD},
        {"Strip", NORMALIZE_STRIP},     {"Lowercase", NORMALIZE_LOWERCASE},
        {"Prepend", NORMALIZE_PREPEND}, {"Replace", NORMALIZE_REPLACE},
    };
    const char *type;
    TRY(json_get_str(&type, json, "type", "normalizer"));
    if (strcmp(type, "Sequence") == 0) return read_sequence(out, arena, json, depth);
    if (out->count == NORMALIZE_STEPS_MAX)
        return err_make(ERR_INPUT, "normalizer: more than %d steps", NORMALIZE_STEPS_MAX);
    struct normalize_step step = {.left = true, .right = true};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].name) != 0) continue;
        step.kind = kinds[i].kind;
        if (step.kind == NORMALIZE_REPLACE) TRY(read_replace(&step, arena, json));
        if (step.kind == NORMALIZE_PREPEND)
            TRY(read_text(&step.content, &step.content_size, arena,
                          json_object_get(json, "prepend"), "normalizer.prepend"));
        TRY(json_opt_bool(&step.left, json, "strip_left", "normalizer"));
        TRY(json_opt_bool(&step.right, json, "strip_right", "normalizer"));
        out->step[out->count++] = step;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "normalizer %s is not supported", type);
}

err normalize_read(struct normalize *out, struct arena *arena, const json_t *json)
{
    struct normalize n = {0};
    if (json && !json_is_null(json)) TRY(read_step(&n, arena, json, 0));
    *out = n;
    return ERR_NONE;
}

void normalize_buffers_close(struct normalize_buffers *b)
{
    piece_close(&b->buffer[0]);
    piece_close(&b->buffer[1]);
}

/* Combining marks that are newer than the tables of Hugging Face tokenizers (Unicode 9). utf8proc
 * would reorder and compose them; Hugging Face leaves them where they are, and the ids of a model
 * depend on it. Sorted ranges. */
static const uint32_t newer_marks[][2] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
    {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99},
    {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae},
    {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
};

/* Binary search for the first range that ends at or after c. */
static bool is_newer_mark(uint32_t c)
{
    size_t low = 0, high = sizeof newer_marks / sizeof *newer_marks;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c > newer_marks[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof newer_marks / sizeof *newer_marks && c >= newer_marks[low][0];
}

/* Whether text can be cut before this character: it never combines with a character before it, so
 * both parts may be normalised alone. In doubt the answer is no, which only makes a segment longer.
 * Hangul syllables start a segment; the vowels and finals of jamo do not. */
static bool begins_segment(uint32_t c)
{
    if (c < 0x300 || (c >= 0xAC00 && c <= 0xD7A3)) return true;
    if (c >= 0x1160 && c <= 0x11FF) return false; /* jamo vowels and finals */
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)c);
    return p->combining_class == 0 && p->comb_index == UINT16_MAX &&
           p->decomp_seqindex == UINT16_MAX;
}

/* Whether a single character is its own normal form. If in doubt the answer is no, which costs only
 * time. */
static bool is_unchanged(uint32_t c)
{
    if (c < 0x80) return true;
    if (c >= 0xAC00 && c <= 0xD7A3) return false;
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)c);
    return p->combining_class == 0 && p->decomp_seqindex == UINT16_MAX;
}

/* UTF8PROC_STABLE keeps the forms equal across versions of Unicode. */
static int form_options(enum normalize_kind kind)
{
    switch (kind) {
    case NORMALIZE_NFD:
        return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    case NORMALIZE_NFKC:
        return UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    case NORMALIZE_NFKD:
        return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
    default:
        return UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    }
}

/* Appends the normal form of in[begin .. end - 1]. If it equals the input, each byte keeps its own
 * origin; if not, all bytes get the origin of the first one. A segment that utf8proc cannot handle
 * is copied unchanged. */
static err form_segment(struct piece_buffer *b, const struct piece *in, uint32_t begin,
                        uint32_t end, int options)
{
    utf8proc_int32_t point[SEGMENT_CHARS_MAX * 4];
    utf8proc_ssize_t n =
        utf8proc_decompose((const utf8proc_uint8_t *)in->text + begin, end - begin, point,
                           sizeof point / sizeof *point - 1, (utf8proc_option_t)options);
    if (n < 0 || n >= (utf8proc_ssize_t)(sizeof point / sizeof *point))
        return piece_copy(b, in, begin, end);
    n = utf8proc_normalize_utf32(point, n, (utf8proc_option_t)options);
    if (n < 0) return piece_copy(b, in, begin, end);
    uint32_t at = b->size;
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        char text[4];
        utf8proc_ssize_t size = utf8proc_encode_char(point[i], (utf8proc_uint8_t *)text);
        TRY(piece_put(b, text, (size_t)size, piece_origin(in, begin)));
    }
    if (b->size - at == end - begin && memcmp(b->text + at, in->text + begin, end - begin) == 0) {
        b->size = at;
        return piece_copy(b, in, begin, end);
    }
    return ERR_NONE;
}

/* Most text is already normal: unchanged stretches are found first and copied as a whole. */
static err run_form(struct piece_buffer *b, const struct piece *in, enum normalize_kind kind)
{
    uint32_t plain = 0; /* start of the unchanged text that is not copied yet */
    for (uint32_t at = 0; at < in->size;) {
        uint32_t n, chars = 1, begin = at, c = piece_char(in->text + at, &n);
        bool alone = c >= newer_marks[0][0] && is_newer_mark(c);
        bool unchanged = alone || is_unchanged(c);
        for (at += n; !alone && at < in->size && chars < SEGMENT_CHARS_MAX; at += n, chars++) {
            c = piece_char(in->text + at, &n);
            if (begins_segment(c) || is_newer_mark(c)) break;
        }
        if (unchanged && chars == 1) continue;
        TRY(piece_copy(b, in, plain, begin));
        TRY(form_segment(b, in, begin, at, form_options(kind)));
        plain = at;
    }
    return piece_copy(b, in, plain, in->size);
}

/* Simple lower case mapping per character, without the rule for a final sigma, as in the
 * reference. */
static err run_lowercase(struct piece_buffer *b, const struct piece *in)
{
    for (uint32_t at = 0, n; at < in->size; at += n) {
        uint32_t c = piece_char(in->text + at, &n);
        char text[4];
        if (c == 0x130) { /* the only letter with a lower case of two characters */
            TRY(piece_put(b, "i\xCC\x87", 3, piece_origin(in, at)));
            continue;
        }
        utf8proc_ssize_t size =
            utf8proc_encode_char(utf8proc_tolower((utf8proc_int32_t)c), (utf8proc_uint8_t *)text);
        TRY(piece_put(b, text, (size_t)size, piece_origin(in, at)));
    }
    return ERR_NONE;
}

/* Needs no buffer, since the result is a part of the text. */
static struct piece strip(const struct piece *in, const struct normalize_step *step)
{
    uint32_t begin = 0, end = in->size, n;
    while (step->left && begin < end && piece_space(piece_char(in->text + begin, &n)))
        begin += n;
    while (step->right && end > begin) {
        uint32_t last = end - 1;
        while (last > begin && ((uint8_t)in->text[last] & 0xC0) == 0x80)
            last--;
        if (!piece_space(piece_char(in->text + last, &n))) break;
        end = last;
    }
    return piece_part(in, begin, end);
}

/* Matches do not overlap, and replaced text is not searched again. */
static err run_replace(struct piece_buffer *b, const struct piece *in,
                       const struct normalize_step *step)
{
    uint32_t at = 0;
    while (at < in->size) {
        const char *hit = memmem(in->text + at, in->size - at, step->pattern, step->pattern_size);
        uint32_t end = hit ? (uint32_t)(hit - in->text) : in->size;
        TRY(piece_copy(b, in, at, end));
        if (!hit) break;
        TRY(piece_put(b, step->content, step->content_size, piece_origin(in, end)));
        at = end + step->pattern_size;
    }
    return ERR_NONE;
}

/* ASCII is its own normal form in all four forms, which skips the work for most text. */
static bool is_ascii(const struct piece *p)
{
    uint8_t all = 0;
    for (uint32_t i = 0; i < p->size; i++)
        all |= (uint8_t)p->text[i];
    return all < 0x80;
}

/* Strip has no case here, because it needs no buffer. */
static err run_step(struct piece_buffer *b, const struct normalize_step *step,
                    const struct piece *in)
{
    switch (step->kind) {
    case NORMALIZE_LOWERCASE:
        return run_lowercase(b, in);
    case NORMALIZE_REPLACE:
        return run_replace(b, in, step);
    case NORMALIZE_PREPEND:
        TRY(piece_put(b, step->content, step->content_size, piece_origin(in, 0)));
        return piece_copy(b, in, 0, in->size);
    default:
        return run_form(b, in, step->kind);
    }
}

/* Two buffers in turn: a step reads one and writes the other. An empty text stays empty: Prepend
 * adds nothing to it, as in Hugging Face. */
err normalize_run(struct piece *out, const struct normalize *n, const struct piece *in,
                  struct normalize_buffers *buffers)
{
    struct piece now = *in;
    int turn = 0;
    for (size_t i = 0; i < n->count; i++) {
        const struct normalize_step *step = &n->step[i];
        if (now.size == 0) continue;
        if (step->kind == NORMALIZE_STRIP) {
            now = strip(&now, step);
            continue;
        }
        if (step->kind <= NORMALIZE_NFKD && is_ascii(&now)) continue;
        struct piece_buffer *b = &buffers->buffer[turn];
        b->size = 0;
        TRY(run_step(b, step, &now));
        now = piece_of(b);
        turn = 1 - turn;
    }
    *out = now;
    return ERR_NONE;
}
