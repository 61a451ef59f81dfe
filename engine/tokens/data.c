/* Reads training rows. The file is read in blocks and tokenised line by line, so memory is that of
 * the tokens (8 bytes each, in an arena) plus one line, whatever the size of the file. */
#include "engine/tokens/data.h"

#include "base/json.h"
#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 20 };

struct reading {
    const char *path;
    const struct data_options *o;
    struct dataset *data;
    size_t vocab, seq;
    bool chat_ready;
    struct chat_template chat;
    struct bytes text; /* of the current row */
    struct chat_spans spans;
    struct tokens tokens;
    struct chat_message *message;
    size_t message_capacity;
    uint64_t line;
};

/* Names the accepted forms of a row, because a wrong key is the most common mistake in a new
 * file. */
static err needs_what(const char *what)
{
    return err_make(ERR_INPUT,
                    "%s; a row needs prompt and completion, messages, text, or "
                    "input_ids and labels",
                    what);
}

/* Names the missing key before the list of accepted forms. */
static err needs_key(const char *key)
{
    char what[64];
    (void)snprintf(what, sizeof what, "\"%s\" is missing", key);
    return needs_what(what);
}

/* Makes room for one more row. The list doubles; the old one stays in the arena, which costs at
 * most as much memory as the list itself. */
static err next_row(struct data_row **out, struct dataset *d)
{
    if (d->count >= LIMIT_ROWS) return err_make(ERR_LIMIT, "more than %u rows", LIMIT_ROWS);
    if (d->count == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 256;
        struct data_row *grown;
        TRY(arena_take(&grown, &d->arena, capacity, sizeof *grown));
        if (d->count) memcpy(grown, d->row, d->count * sizeof *grown);
        d->row = grown;
        d->capacity = capacity;
    }
    *out = &d->row[d->count];
    return ERR_NONE;
}

/* Adds a row with the ids in r->tokens and their labels, cut at `seq`. Position 0 does not count as
 * learned, because nothing predicts it, but it ends the prompt. Rows without learned tokens are
 * kept and counted in `unlearned`. */
static err put_row(struct reading *r, const int32_t *label, const char *completion)
{
    struct dataset *d = r->data;
    struct data_row *row = NULL;
    int32_t *ids, *labels;
    size_t count = r->tokens.count < r->seq ? r->tokens.count : r->seq, learned = 0, prompt = count;
    if (count == 0) return err_make(ERR_INPUT, "the row holds no token");
    TRY(arena_take(&ids, &d->arena, 2 * count, sizeof *ids));
    labels = ids + count;
    memcpy(ids, r->tokens.id, count * sizeof *ids);
    memcpy(labels, label, count * sizeof *labels);
    for (size_t i = 0; i < count; i++) {
        if (labels[i] == DATA_IGNORE) continue;
        if (prompt == count) prompt = i;
        if (i > 0) learned++;
    }
    const char *kept = NULL;
    if (completion) TRY(arena_text(&kept, &d->arena, completion, strlen(completion)));
    TRY(next_row(&row, d));
    *row = (struct data_row){.id = ids,
                             .label = labels,
                             .count = (uint32_t)count,
                             .learned = (uint32_t)learned,
                             .prompt = (uint32_t)prompt,
                             .line = (uint32_t)r->line,
                             .completion = kept};
    d->count++;
    d->tokens += count;
    d->learned += learned;
    d->cut += r->tokens.count > count;
    d->unlearned += learned == 0;
    return ERR_NONE;
}

/* Encodes r->text as one text and marks as learned the tokens whose first byte lies in one of the
 * stretches, and eos. One encoding of the whole text gives the ids that the model will see when it
 * generates; encoding prompt and completion apart could split a word differently. */
static err put_text(struct reading *r, const struct chat_span *learned, size_t spans, bool eos,
                    const char *completion)
{
    const struct tokenizer *t = r->o->tokenizer;
    struct tokens *k = &r->tokens;
    size_t bos = r->o->bos && eos && tokenizer_bos(t) >= 0; /* messages have their own bos */
    tokens_clear(k);
    if (bos) TRY(tokens_push(k, tokenizer_bos(t), 0));
    TRY(tokenizer_encode(k, t, r->text.data ? (const char *)r->text.data : "", r->text.size, true));
    size_t count = k->count;
    if (eos && !r->o->no_eos) {
        if (tokenizer_eos(t) < 0)
            return err_make(ERR_INPUT, "the tokenizer has no end-of-sequence token; use --no-eos");
        TRY(tokens_push(k, tokenizer_eos(t), 0));
    }
    int32_t *label = malloc((k->count + 1) * sizeof *label);
    if (!label) return err_sys(ENOMEM, "row of %zu tokens", k->count);
    for (size_t i = 0, s = 0; i < k->count; i++) {
        while (s < spans && k->start[i] >= learned[s].end)
            s++;
        bool in = i >= count || (i >= bos && s < spans && k->start[i] >= learned[s].begin);
        label[i] = in ? k->id[i] : DATA_IGNORE;
    }
    err e = put_row(r, label, completion);
    free(label);
    return e;
}

/* JSON null counts as absent: exporters of tables write it for empty cells. */
static err find_text(const char **out, const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    if (!value || json_is_null(value)) return needs_key(key);
    if (!json_is_string(value)) return err_make(ERR_INPUT, "\"%s\": expected a string", key);
    *out = json_string_value(value);
    return ERR_NONE;
}

/* The completion starts at its separator, so a token that begins with the space is learned. */
static err put_pair(struct reading *r, const char *prompt, const char *between,
                    const char *completion)
{
    bytes_clear(&r->text);
    TRY(bytes_append(&r->text, prompt, strlen(prompt)));
    size_t begin = r->text.size;
    TRY(bytes_append(&r->text, between, strlen(between)));
    TRY(bytes_append(&r->text, completion, strlen(completion)));
    struct chat_span span = {begin, r->text.size};
    return put_text(r, &span, 1, true, completion);
}

/* Nothing is put between the two parts: the prompt contains its own separator. */
static err read_pair(struct reading *r, const json_t *row)
{
    const char *prompt = NULL, *completion = NULL;
    TRY(find_text(&prompt, row, "prompt"));
    TRY(find_text(&completion, row, "completion"));
    return put_pair(r, prompt, "", completion);
}

/* A row for classification. Spaces at the end of the prompt are moved into the completion:
 * otherwise the tokenizer would join the space with the first letters of the label into one token
 * that starts in the prompt, and that token would not be learned. Integer labels are written as
 * decimal numbers. */
static err read_labelled(struct reading *r, const json_t *row)
{
    const char *text = NULL, *label = NULL;
    const json_t *value = json_object_get(row, "label");
    char number[32], *prompt;
    TRY(find_text(&text, row, "text"));
    if (json_is_integer(value)) {
        (void)snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        label = number;
    } else {
        TRY(find_text(&label, row, "label"));
    }
    size_t size = strlen(text);
    while (size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\t'))
        size--;
    prompt = strndup(text, size);
    if (!prompt) return err_sys(ENOMEM, "row");
    err e = put_pair(r, prompt, size == 0 || text[size - 1] == '\n' ? "" : " ", label);
    free(prompt);
    return e;
}

/* The whole text is learned, and there is no completion to measure accuracy with. */
static err read_text(struct reading *r, const json_t *row)
{
    const char *text = NULL;
    TRY(find_text(&text, row, "text"));
    bytes_clear(&r->text);
    TRY(bytes_append(&r->text, text, strlen(text)));
    struct chat_span span = {0, r->text.size};
    return put_text(r, &span, 1, true, NULL);
}

/* Content that is not a string (lists of parts with images or tools) is refused. */
static err gather_messages(struct reading *r, const json_t *list, size_t count)
{
    if (count > r->message_capacity) {
        struct chat_message *grown = realloc(r->message, count * sizeof *grown);
        if (!grown) return err_sys(ENOMEM, "messages");
        r->message = grown;
        r->message_capacity = count;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *m = json_array_get(list, i);
        r->message[i].role = json_string_value(json_object_get(m, "role"));
        r->message[i].content = json_string_value(json_object_get(m, "content"));
        if (!r->message[i].role || !r->message[i].content)
            return err_make(
                ERR_INPUT, "\"messages\": message %zu: expected a role and a content, both strings",
                i + 1);
    }
    return ERR_NONE;
}

/* The template is recognised only when the first row has messages, so models without one can train
 * on other rows. */
static err read_messages(struct reading *r, const json_t *row)
{
    const json_t *list = json_object_get(row, "messages");
    if (!json_is_array(list) || json_array_size(list) == 0)
        return err_make(ERR_INPUT, "\"messages\": expected a list of messages, at least one");
    if (!r->chat_ready) TRY(chat_find(&r->chat, r->o->tokenizer));
    r->chat_ready = true;
    TRY(gather_messages(r, list, json_array_size(list)));
    bytes_clear(&r->text);
    r->spans.count = 0;
    TRY(chat_render(&r->text, &r->spans, &r->chat, r->message, json_array_size(list),
                    &(struct chat_options){0}));
    return put_text(r, r->spans.span, r->spans.count, false, NULL);
}

/* Ids are checked here, because they index the embedding later. */
static err find_id(int32_t *out, const struct reading *r, const json_t *list, size_t i,
                   const char *key)
{
    const json_t *value = json_array_get(list, i);
    json_int_t id = json_integer_value(value);
    bool ignored = strcmp(key, "labels") == 0 && id == DATA_IGNORE;
    if (!json_is_integer(value) || ((id < 0 || (size_t)id >= r->vocab) && !ignored))
        return err_make(ERR_INPUT, "\"%s\"[%zu]: expected a token id below %zu%s", key, i, r->vocab,
                        strcmp(key, "labels") == 0 ? ", or -100" : "");
    *out = (int32_t)id;
    return ERR_NONE;
}

/* Without labels every token is learned. Such rows get no eos, since the ids are taken as they
 * are. */
static err read_ids(struct reading *r, const json_t *row)
{
    const json_t *ids = json_object_get(row, "input_ids"), *labels = json_object_get(row, "labels");
    size_t count = json_array_size(ids);
    if (json_is_null(labels)) labels = NULL;
    if (!json_is_array(ids) || count == 0)
        return err_make(ERR_INPUT, "\"input_ids\": expected a list of token ids, at least one");
    if (labels && (!json_is_array(labels) || json_array_size(labels) != count))
        return err_make(ERR_INPUT, "\"labels\": expected a list of %zu, as long as input_ids",
                        count);
    int32_t *label = malloc(count * sizeof *label), id = 0;
    if (!label) return err_sys(ENOMEM, "row of %zu tokens", count);
    err e = ERR_NONE;
    tokens_clear(&r->tokens);
    for (size_t i = 0; i < count; i++) {
        TRY_OUT(e, find_id(&id, r, ids, i, "input_ids"));
        TRY_OUT(e, tokens_push(&r->tokens, id, 0));
        label[i] = id;
        if (labels) TRY_OUT(e, find_id(&label[i], r, labels, i, "labels"));
    }
    e = put_row(r, label, NULL);
out:
    free(label);
    return e;
}

/* The forms in the order of data.h: the first key that is there decides. */
static err read_row(struct reading *r, const json_t *row)
{
    if (!json_is_object(row)) return needs_what("expected an object");
    if (json_object_get(row, "input_ids")) return read_ids(r, row);
    if (!r->o->tokenizer)
        return err_make(ERR_INPUT, "\"input_ids\" is missing, and there is no tokenizer for text");
    if (json_object_get(row, "messages")) return read_messages(r, row);
    if (json_object_get(row, "prompt") || json_object_get(row, "completion"))
        return read_pair(r, row);
    if (json_object_get(row, "label")) return read_labelled(r, row);
    if (json_object_get(row, "text")) return read_text(r, row);
    return needs_key("prompt");
}

/* A byte order mark at the start of the file is skipped: editors on Windows write it. Duplicate
 * keys are refused, since readers disagree about which one counts. */
static err read_line(struct reading *r, const char *line, size_t size)
{
    json_error_t cause;
    r->line++;
    if (r->line == 1 && size >= 3 && memcmp(line, "\xEF\xBB\xBF", 3) == 0) line += 3, size -= 3;
    size_t blank = 0;
    while (blank < size && strchr(" \t\r", line[blank]) && line[blank])
        blank++;
    if (blank == size) return ERR_NONE;
    json_t *row = json_loadb(line, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &cause);
    if (!row)
        return err_make(ERR_INPUT, "%s:%llu:%d: not JSON: %s", r->path, (unsigned long long)r->line,
                        cause.column, cause.text);
    err e = read_row(r, row);
    json_decref(row);
    return err_is(e) ? err_in(e, "%s:%llu", r->path, (unsigned long long)r->line) : e;
}

/* Collects lines from blocks of 1 MiB. A line may span several blocks, up to LIMIT_LINE_BYTES; the
 * last one needs no line feed. */
static err read_file(struct reading *r, int fd)
{
    struct bytes line = {.max = LIMIT_LINE_BYTES};
    char *block = malloc(READ_BYTES);
    err e = block ? ERR_NONE : err_sys(ENOMEM, "%s", r->path);
    while (!err_is(e)) {
        ssize_t got = read(fd, block, READ_BYTES);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) e = err_sys(errno, "%s", r->path);
        if (got <= 0) break;
        for (char *at = block, *stop = block + got; at < stop && !err_is(e);) {
            char *end = memchr(at, '\n', (size_t)(stop - at));
            size_t size = (size_t)((end ? end : stop) - at);
            if (err_is(bytes_append(&line, at, size)))
                e = err_make(ERR_INPUT, "%s:%llu: the line is longer than %u bytes", r->path,
                             (unsigned long long)r->line + 1, LIMIT_LINE_BYTES);
            else if (end)
                e = read_line(r, line.data ? (const char *)line.data : "", line.size);
            if (end) bytes_clear(&line);
            at += size + 1;
        }
    }
    if (!err_is(e) && line.size > 0) e = read_line(r, (const char *)line.data, line.size);
    bytes_close(&line);
    free(block);
    return e;
}

/* A file that is missing or not readable is a mistake in the command (ERR_INPUT); other errors are
 * of the machine. */
static err open_file(int *out, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == EACCES || errno == ENOTDIR))
        return err_make(ERR_INPUT, "%s: %s", path, strerror(errno));
    if (fd < 0) return err_sys(errno, "%s", path);
    if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
        (void)close(fd);
        return err_make(ERR_INPUT, "%s: is a directory, expected a JSON Lines file", path);
    }
    *out = fd;
    return ERR_NONE;
}

/* *out is set only after the whole file has been read. r.text may be twice as long as a line,
 * because a chat template adds text around messages. */
err data_open(struct dataset *out, const char *path, const struct data_options *options)
{
    struct dataset data = {0};
    struct reading r = {.path = path, .o = options, .data = &data};
    int fd = -1;
    REQUIRE(options->vocab > 0 || options->tokenizer);
    r.vocab = options->vocab ? options->vocab : tokenizer_vocab(options->tokenizer);
    r.seq = options->seq ? options->seq : LIMIT_SEQUENCE;
    r.text.max = 2 * (size_t)LIMIT_LINE_BYTES;
    TRY(open_file(&fd, path));
    err e = read_file(&r, fd);
    (void)close(fd);
    if (!err_is(e) && data.count == 0) e = err_make(ERR_INPUT, "%s: holds no rows", path);
    bytes_close(&r.text);
    chat_spans_close(&r.spans);
    tokens_close(&r.tokens);
    free(r.message);
    if (err_is(e)) {
        data_close(&data);
        return e;
    }
    *out = data;
    return ERR_NONE;
}

/* All rows lie in the arena. */
void data_close(struct dataset *data)
{
    arena_close(&data->arena);
    *data = (struct dataset){0};
}
