/* tokenizer.json and tokenizer_config.json from a GGUF's keys.
 *
 * A GGUF stores a vocabulary and the name of a pre-tokenizer, while tokenizer.json describes each
 * step (normalizer, pre-tokenizer, model, decoder). The steps are known for the byte-level BPE of
 * the families in pre_rows[], and for SentencePiece BPE. Others are refused. */
#include "base/file.h"
#include "base/json.h"
#include "client/export/export_parts.h"
#include "engine/tokens/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Token types of tokenizer.ggml.token_type. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER };

/* U+2581, by which SentencePiece stands for a space. */
#define MARK "\xE2\x96\x81"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define TAIL "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* The regular expressions of the original tokenizer.json files. */
static const char llama3_pattern[] =
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL;
static const char qwen2_pattern[] =
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL;
static const char o200k_pattern[] =
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" CONTRACTIONS "?|[^\\r\\n\\p{L}\\p{N}]?" UPPER
    "+" LOWER "*" CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL;
static const char tekken_pattern[] =
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER
    "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL;

/* How each pre-tokenizer name of a GGUF (tokenizer.ggml.pre) is expressed. */
static const struct pre_row {
    const char *name;
    bool digits;         /* digits one by one first */
    const char *pattern; /* NULL: GPT-2's own, inside ByteLevel */
    bool ignore_merges, nfc;
} pre_rows[] = {
    {.name = "gpt-2"},
    {.name = "smollm", .digits = true},
    {.name = "starcoder", .digits = true},
    {.name = "refact", .digits = true},
    {.name = "llama-bpe", .pattern = llama3_pattern, .ignore_merges = true},
    {.name = "llama-v3", .pattern = llama3_pattern, .ignore_merges = true},
    {.name = "llama3", .pattern = llama3_pattern, .ignore_merges = true},
    {.name = "qwen2", .pattern = qwen2_pattern, .nfc = true},
    {.name = "deepseek-r1-qwen", .pattern = qwen2_pattern},
    {.name = "dbrx", .pattern = llama3_pattern},      /* OLMo 2, Phi-4 */
    {.name = "smaug-bpe", .pattern = llama3_pattern}, /* SmolLM3 */
    {.name = "gpt-4o", .pattern = o200k_pattern},     /* Phi-4-mini */
    {.name = "tekken", .pattern = tekken_pattern, .ignore_merges = true},
};

/* The arrays of the GGUF, borrowed from its map, and the arena of their lists. */
struct vocab {
    const struct gguf *g;
    struct arena arena;
    const struct gguf_str *text; /* (count) the token of each id, not zero-terminated */
    const int32_t *type;         /* (count), or NULL: all normal */
    const float *score;          /* (count), SentencePiece only */
    size_t count;
};

/* SentencePiece has scores instead of merges. A shorter array would be read past its end, so
 * lengths are compared with the vocabulary. */
static err read_vocab(struct vocab *v, bool scored)
{
    size_t n;
    TRY(gguf_get_strings(&v->text, &v->count, v->g, "tokenizer.ggml.tokens", &v->arena));
    if (gguf_find(v->g, "tokenizer.ggml.token_type") != NULL) {
        TRY(gguf_get_i32s(&v->type, &n, v->g, "tokenizer.ggml.token_type", &v->arena));
        if (n < v->count)
            return err_make(ERR_INPUT, "tokenizer.ggml.token_type has %zu entries, expected %zu", n,
                            v->count);
    }
    if (!scored) return ERR_NONE;
    TRY(gguf_get_f32s(&v->score, &n, v->g, "tokenizer.ggml.scores", &v->arena));
    if (n < v->count)
        return err_make(ERR_INPUT, "tokenizer.ggml.scores has %zu entries, expected %zu", n,
                        v->count);
    return ERR_NONE;
}

/* NULL if the token is not UTF-8; callers report which. */
static json_t *text_json(struct gguf_str s)
{
    return json_stringn(s.data, s.size);
}

/* Tokens that are matched as a whole before the text is split, such as <|im_end|>. */
static bool is_added(const struct vocab *v, size_t id)
{
    int32_t type = v->type != NULL ? v->type[id] : TYPE_NORMAL;
    return type == TYPE_CONTROL || type == TYPE_USER || type == TYPE_UNKNOWN;
}

/* A user-defined token is not "special", so that decoders print it. */
static err added_json(json_t *list, const struct vocab *v)
{
    bool strips = false;
    TRY(tokenizer_gguf_strips(&strips, v->g));
    for (size_t id = 0; id < v->count; id++) {
        if (!is_added(v, id)) continue;
        json_t *text = text_json(v->text[id]);
        bool rstrip = strips && text != NULL && tokenizer_strips(json_string_value(text));
        json_t *token = json_pack("{s:I, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id,
                                  "content", text, "single_word", 0, "lstrip", 0, "rstrip", rstrip,
                                  "normalized", 0, "special", v->type[id] != TYPE_USER);
        if (token == NULL || json_array_append_new(list, token) != 0)
            return err_make(ERR_INPUT, "token %zu is not UTF-8", id);
    }
    return ERR_NONE;
}

/* Not checked for UTF-8 here, because json_dumps() does it when the file is written. */
static err vocab_json(json_t *object, const struct vocab *v)
{
    for (size_t id = 0; id < v->count; id++)
        if (json_object_setn_new_nocheck(object, v->text[id].data, v->text[id].size,
                                         json_integer((json_int_t)id)) != 0)
            return err_make(ERR_MACHINE, "no memory for tokenizer.json");
    return ERR_NONE;
}

/* "left right" becomes ["left", "right"]. A token may begin with a space in these files, so the
 * separator is the first space that is not the first byte. */
static err merges_json(json_t *list, const struct vocab *v)
{
    const struct gguf_str *merge;
    struct arena arena = {0};
    size_t count;
    err e;
    TRY_OUT(e, gguf_get_strings(&merge, &count, v->g, "tokenizer.ggml.merges", &arena));
    for (size_t i = 0; i < count; i++) {
        struct gguf_str m = merge[i];
        const char *space = m.size > 2 ? memchr(m.data + 1, ' ', m.size - 1) : NULL;
        json_t *pair = NULL;
        if (space != NULL) {
            size_t left = (size_t)(space - m.data);
            pair = json_pack("[o, o]", json_stringn(m.data, left),
                             json_stringn(space + 1, m.size - left - 1));
        }
        if (pair == NULL || json_array_append_new(list, pair) != 0) {
            e = err_make(ERR_INPUT,
                         "tokenizer.ggml.merges[%zu]: expected two tokens separated by a space", i);
            goto out;
        }
    }
out:
    arena_close(&arena);
    return e;
}

/* A way to join two tokens into a third one. */
struct scored_split {
    float score;                /* of the joined token */
    int32_t whole, left, right; /* ids of the joined token and of its parts */
};

/* The best score first. Equal scores are ordered by ids, so that the file does not depend on
 * qsort(). */
static int compare_splits(const void *a, const void *b)
{
    const struct scored_split *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->whole != y->whole) return x->whole < y->whole ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

static int32_t find_id(const json_t *ids, const char *data, size_t size)
{
    const json_t *id = json_object_getn(ids, data, size);
    return id != NULL ? (int32_t)json_integer_value(id) : -1;
}

/* SentencePiece always joins the pair whose joined token has the best score. That equals BPE with
 * one merge for every way to split every token into two known tokens, ordered by score. Special
 * tokens take no part in it. */
static err splits_of(struct scored_split **out, size_t *count, const struct vocab *v,
                     const json_t *ids)
{
    size_t n = 0, room = 0;
    struct scored_split *list = NULL;
    for (size_t id = 0; id < v->count; id++) {
        struct gguf_str s = v->text[id];
        bool plain = v->type == NULL || v->type[id] == TYPE_NORMAL;
        for (size_t k = 1; plain && k < s.size; k++) {
            if (((unsigned char)s.data[k] & 0xC0) == 0x80) continue; /* inside a character */
            int32_t left = find_id(ids, s.data, k), right = find_id(ids, s.data + k, s.size - k);
            if (left < 0 || right < 0 || is_added(v, (size_t)left) || is_added(v, (size_t)right))
                continue;
            if (n == room) {
                room = room > 0 ? 2 * room : 1 << 16;
                struct scored_split *more = realloc(list, room * sizeof *list);
                if (more == NULL) {
                    free(list);
                    return err_make(ERR_MACHINE, "no memory for merges");
                }
                list = more;
            }
            list[n++] = (struct scored_split){v->score[id], (int32_t)id, left, right};
        }
    }
    if (n > 0) qsort(list, n, sizeof *list, compare_splits);
    *out = list;
    *count = n;
    return ERR_NONE;
}

/* The merges are in the order of their scores, which is the order in which BPE applies them. */
static err scored_merges_json(json_t *list, const struct vocab *v, const json_t *ids)
{
    struct scored_split *split = NULL;
    size_t count = 0;
    TRY(splits_of(&split, &count, v, ids));
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++) {
        json_t *pair = json_pack("[o, o]", text_json(v->text[split[i].left]),
                                 text_json(v->text[split[i].right]));
        if (pair == NULL || json_array_append_new(list, pair) != 0)
            e = err_make(ERR_INPUT, "token %d is not UTF-8", split[i].whole);
    }
    free(split);
    return e;
}

/* The step that maps bytes to printable characters; %s: whether it also splits by GPT-2's
 * pattern. */
static const char byte_level[] =
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
    "\"use_regex\":%s}";

/* {"type": "Sequence", "pretokenizers": [...]}, with the digits first, as in the original files. */
static err pre_json(json_t **out, const struct pre_row *row)
{
    char text[sizeof byte_level + 8];
    json_t *list = json_array(), *level = NULL;
    (void)snprintf(text, sizeof text, byte_level, row->pattern == NULL ? "true" : "false");
    if (row->digits)
        json_array_append_new(list,
                              json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
    if (row->pattern != NULL)
        json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split",
                                              "pattern", "Regex", row->pattern, "behavior",
                                              "Isolated", "invert", 0));
    err e = json_parse(&level, text, strlen(text), "pre_tokenizer");
    if (!err_is(e)) {
        json_array_append_new(list, level);
        *out = json_pack("{s:s, s:O}", "type", "Sequence", "pretokenizers", list);
    }
    json_decref(list);
    return e;
}

/* ByteLevel is pre-tokenizer and decoder. */
static err byte_level_json(json_t *root, json_t *model, const struct vocab *v,
                           const struct pre_row *row)
{
    json_t *pre = NULL, *level = NULL;
    char text[sizeof byte_level + 8];
    TRY(merges_json(json_object_get(model, "merges"), v));
    TRY(pre_json(&pre, row));
    json_object_set_new(root, "pre_tokenizer", pre);
    (void)snprintf(text, sizeof text, byte_level, "true");
    TRY(json_parse(&level, text, strlen(text), "decoder"));
    json_object_set_new(root, "decoder", level);
    if (row->nfc) json_object_set_new(root, "normalizer", json_pack("{s:s}", "type", "NFC"));
    json_object_set_new(model, "ignore_merges", json_boolean(row->ignore_merges));
    return ERR_NONE;
}

/* SentencePiece: spaces become MARK and one is put in front (unless the GGUF says otherwise); the
 * decoder reverts both. byte_fallback encodes unknown characters as tokens <0x..>. */
static err piece_json(json_t *root, json_t *model, const struct vocab *v)
{
    static const char prepend[] = "{\"type\":\"Prepend\",\"prepend\":\"" MARK "\"}";
    static const char replace[] =
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" MARK "\"}";
    static const char decoder[] =
        "[{\"type\":\"Replace\",\"pattern\":{\"String\":\"" MARK
        "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]";
    static const char strip[] = "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}";
    bool prefix = true;
    TRY(gguf_opt_bool(&prefix, v->g, "tokenizer.ggml.add_space_prefix"));
    TRY(scored_merges_json(json_object_get(model, "merges"), v, json_object_get(model, "vocab")));
    json_t *normalizers = json_array(), *decoders = NULL, *part = NULL;
    if (prefix) {
        TRY(json_parse(&part, prepend, sizeof prepend - 1, "normalizer"));
        json_array_append_new(normalizers, part);
    }
    TRY(json_parse(&part, replace, sizeof replace - 1, "normalizer"));
    json_array_append_new(normalizers, part);
    TRY(json_parse(&decoders, decoder, sizeof decoder - 1, "decoder"));
    if (prefix) {
        TRY(json_parse(&part, strip, sizeof strip - 1, "decoder"));
        json_array_append_new(decoders, part);
    }
    json_object_set_new(root, "normalizer",
                        json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", normalizers));
    json_object_set_new(root, "decoder",
                        json_pack("{s:s, s:o}", "type", "Sequence", "decoders", decoders));
    uint32_t unknown = 0;
    TRY(gguf_opt_u32(&unknown, v->g, "tokenizer.ggml.unknown_token_id"));
    if (unknown < v->count) json_object_set_new(model, "unk_token", text_json(v->text[unknown]));
    json_object_set_new(model, "byte_fallback", json_true());
    json_object_set_new(model, "fuse_unk", json_true());
    return ERR_NONE;
}

/* *row is NULL for SentencePiece. A GGUF without a pre-tokenizer name is so old that its
 * kind is unknown. */
static err find_kind(const struct pre_row **row, const struct gguf *g)
{
    struct gguf_str model, pre = {.data = "none", .size = 4};
    TRY(gguf_get_str(&model, g, "tokenizer.ggml.model"));
    *row = NULL;
    if (gguf_str_is(model, "llama")) return ERR_NONE;
    TRY(gguf_opt_str(&pre, g, "tokenizer.ggml.pre"));
    for (size_t i = 0; gguf_str_is(model, "gpt2") && i < sizeof pre_rows / sizeof pre_rows[0]; i++)
        if (gguf_str_is(pre, pre_rows[i].name)) *row = &pre_rows[i];
    if (*row != NULL) return ERR_NONE;
    return err_make(
        ERR_INPUT,
        "no tokenizer.json was written, because the GGUF's tokenizer %.*s with pre-tokenizer %.*s "
        "is not supported; copy the file from the model's own directory",
        (int)(model.size < 40 ? model.size : 40), model.data, (int)(pre.size < 40 ? pre.size : 40),
        pre.data);
}

/* The objects are inserted into the root first and filled afterwards, so that the root owns them
 * when an error occurs. */
static err fill_root(json_t *root, struct vocab *v)
{
    const struct pre_row *row;
    TRY(find_kind(&row, v->g));
    TRY(read_vocab(v, row == NULL));
    json_t *added = json_array(),
           *model = json_pack("{s:s, s:{}, s:[]}", "type", "BPE", "vocab", "merges");
    if (json_object_set_new(root, "version", json_string("1.0")) != 0 ||
        json_object_set_new(root, "added_tokens", added) != 0 ||
        json_object_set_new(root, "model", model) != 0)
        return err_make(ERR_MACHINE, "no memory for tokenizer.json");
    TRY(added_json(added, v));
    TRY(vocab_json(json_object_get(model, "vocab"), v));
    return row == NULL ? piece_json(root, model, v) : byte_level_json(root, model, v, row);
}

/* tokenizer_config.json names special tokens by their text and not by their id. */
static err add_token_name(json_t *config, const struct vocab *v, const char *key,
                          const char *gguf_key)
{
    uint32_t id = UINT32_MAX;
    TRY(gguf_opt_u32(&id, v->g, gguf_key));
    if (id < v->count) json_object_set_new(config, key, text_json(v->text[id]));
    return ERR_NONE;
}

/* PreTrainedTokenizerFast reads everything from tokenizer.json and needs no code of the model's
 * own. */
static err fill_config(json_t *config, const struct vocab *v)
{
    struct gguf_str template = {0}, tools = {0};
    json_object_set_new(config, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
    json_object_set_new(config, "clean_up_tokenization_spaces", json_false());
    TRY(add_token_name(config, v, "bos_token", "tokenizer.ggml.bos_token_id"));
    TRY(add_token_name(config, v, "eos_token", "tokenizer.ggml.eos_token_id"));
    TRY(add_token_name(config, v, "unk_token", "tokenizer.ggml.unknown_token_id"));
    TRY(add_token_name(config, v, "pad_token", "tokenizer.ggml.padding_token_id"));
    TRY(gguf_opt_str(&template, v->g, "tokenizer.chat_template"));
    TRY(gguf_opt_str(&tools, v->g, "tokenizer.chat_template.tool_use"));
    if (template.data != NULL && tools.data != NULL) /* a list, as transformers names them */
        json_object_set_new(config, "chat_template",
                            json_pack("[{s:s, s:o}, {s:s, s:o}]", "name", "default", "template",
                                      text_json(template), "name", "tool_use", "template",
                                      text_json(tools)));
    else if (template.data != NULL)
        json_object_set_new(config, "chat_template", text_json(template));
    return ERR_NONE;
}

/* The order of the keys is kept: ids follow the vocabulary, which makes the file readable. */
static err write_json(const char *dir, const char *name, const json_t *value)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    char *text = json_dumps(value, JSON_INDENT(1) | JSON_PRESERVE_ORDER);
    if (text == NULL) return err_make(ERR_INPUT, "%s: a token is not UTF-8", name);
    err e = file_write(path, text, strlen(text), true);
    free(text);
    return e;
}

/* Both documents are complete before the first file is written. */
err export_tokenizer(const char *dir, const struct gguf *g)
{
    struct vocab v = {.g = g};
    json_t *root = json_object(), *config = json_object();
    err e;
    TRY_OUT(e, fill_root(root, &v));
    TRY_OUT(e, fill_config(config, &v));
    TRY_OUT(e, write_json(dir, "tokenizer.json", root));
    e = write_json(dir, "tokenizer_config.json", config);
out:
    json_decref(root);
    json_decref(config);
    arena_close(&v.arena);
    return e;
}
