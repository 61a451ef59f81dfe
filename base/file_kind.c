#include "base/file_kind.h"

#include "base/limits.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>

static const struct kind {
    const char *name, *remedy; /* the remedy "" if the name is enough */
} kinds[FILE_KINDS] = {
    [FILE_KIND_UNKNOWN] = {"a file of unknown kind", ""},
    [FILE_KIND_EMPTY] = {"an empty file", "copy or download it again"},
    [FILE_KIND_LFS] = {"a Git LFS pointer",
                       "fetch the file itself: run `git lfs pull` in its directory"},
    [FILE_KIND_HTML] = {"an HTML or XML page",
                        "probably a login or error page that was saved; download the file again"},
    [FILE_KIND_ZIP] = {"a zip archive, as PyTorch saves .bin and .pt files",
                       "convert it with safetensors.torch.save_file in Python"},
    [FILE_KIND_PICKLE] = {"a Python pickle, as old PyTorch saves .bin and .pt files",
                          "convert it with safetensors.torch.save_file in Python"},
    [FILE_KIND_GGUF] = {"a GGUF file", ""},
    [FILE_KIND_GGML] = {"a GGML file of the time before GGUF", "convert the original model again"},
    [FILE_KIND_SAFETENSORS] = {"a safetensors file", ""},
    [FILE_KIND_GZIP] = {"a gzip file", "unpack it with gunzip"},
    [FILE_KIND_ZSTD] = {"a zstd file", "unpack it with unzstd"},
    [FILE_KIND_XZ] = {"an xz file", "unpack it with unxz"},
    [FILE_KIND_TAR] = {"a tar archive", "unpack it with tar"},
    [FILE_KIND_HDF5] = {"an HDF5 file, as TensorFlow saves .h5 files",
                        "save the model with transformers and safetensors"},
    [FILE_KIND_NUMPY] = {"a NumPy file", ""},
    [FILE_KIND_PARQUET] = {"a Parquet file", ""},
    [FILE_KIND_UTF16] = {"UTF-16 text", "save it as UTF-8"},
    [FILE_KIND_JSON] = {"a JSON file", ""},
};

static const struct magic {
    enum file_kind kind;
    uint8_t size;
    const char *bytes;
} magics[] = {
    {FILE_KIND_ZIP, 4, "PK\x03\x04"},
    {FILE_KIND_ZIP, 4, "PK\x05\x06"},
    {FILE_KIND_GGUF, 4, "GGUF"},
    {FILE_KIND_GGUF, 4, "FUGG"}, /* of a big-endian machine */
    {FILE_KIND_GGML, 4, "lmgg"}, /* magic numbers of 32 bits, little-endian */
    {FILE_KIND_GGML, 4, "fmgg"},
    {FILE_KIND_GGML, 4, "tjgg"},
    {FILE_KIND_GGML, 4, "algg"},
    {FILE_KIND_GZIP, 3, "\x1f\x8b\x08"},
    {FILE_KIND_ZSTD, 4, "\x28\xb5\x2f\xfd"},
    {FILE_KIND_XZ, 6,
     "\xfd"
     "7zXZ\0"},
    {FILE_KIND_HDF5, 8, "\x89HDF\r\n\x1a\n"},
    {FILE_KIND_NUMPY, 6, "\x93NUMPY"},
    {FILE_KIND_PARQUET, 4, "PAR1"},
    {FILE_KIND_UTF16, 2, "\xff\xfe"},
    {FILE_KIND_UTF16, 2, "\xfe\xff"},
};

/* A length that a reader would accept, and the brace that every header begins with. */
static bool is_safetensors(const uint8_t *p, size_t size)
{
    uint64_t length = 0;
    if (size < 9 || p[8] != '{') return false;
    for (int i = 0; i < 8; i++)
        length |= (uint64_t)p[i] << (8 * i);
    return length <= LIMIT_SAFETENSORS_HEADER;
}

/* The opcode PROTO of protocols 2 to 5, and a full stop (STOP) at the end or, as in PyTorch's old
 * format, the pickled long integer 0x1950a86a20f9469cfc6c as the first object. */
static bool is_pickle(const uint8_t *p, size_t size)
{
    static const uint8_t torch[] = {0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46};
    if (size < 4 || p[0] != 0x80 || p[1] < 2 || p[1] > 5) return false;
    return p[size - 1] == '.' || (size >= 8 && memcmp(p + 2, torch, sizeof torch) == 0);
}

static bool is_tar(const uint8_t *p, size_t size)
{
    return size > 262 && memcmp(p + 257, "ustar", 5) == 0;
}

/* The pointer's first line is "version https://git-lfs.github.com/spec/v1". */
static bool is_lfs(const uint8_t *p, size_t size)
{
    static const char line[] = "version https://git-lfs", old[] = "version http://git-media";
    return (size >= sizeof line - 1 && memcmp(p, line, sizeof line - 1) == 0) ||
           (size >= sizeof old - 1 && memcmp(p, old, sizeof old - 1) == 0);
}

/* After a byte order mark and white space. */
static const uint8_t *text_start(const uint8_t *p, size_t *size)
{
    size_t at = *size >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < *size && (p[at] == ' ' || p[at] == '\n' || p[at] == '\r' || p[at] == '\t'))
        at++;
    *size -= at;
    return p + at;
}

static bool is_html(const uint8_t *p, size_t size)
{
    static const char *const begin[] = {"<!doctype", "<html", "<head", "<body", "<?xml", "<!--"};
    for (size_t i = 0; i < sizeof begin / sizeof *begin; i++) {
        size_t n = strlen(begin[i]);
        if (size >= n && strncasecmp((const char *)p, begin[i], n) == 0) return true;
    }
    return false;
}

/* One of the bytes that can follow the first bracket. The first byte alone is not enough, because
 * the length of a safetensors header may begin with it. */
static bool is_json(const uint8_t *p, size_t size)
{
    if (size < 2 || (p[0] != '{' && p[0] != '[')) return false;
    p++;
    size--;
    p = text_start(p, &size);
    return size && strchr("\"{}[]-0123456789tfn", *p) != NULL && *p;
}

enum file_kind file_kind_of(const void *data, size_t size)
{
    const uint8_t *p = data;
    if (size == 0) return FILE_KIND_EMPTY;
    if (is_safetensors(p, size)) return FILE_KIND_SAFETENSORS;
    if (is_lfs(p, size)) return FILE_KIND_LFS;
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        const struct magic *m = &magics[i];
        if (size >= m->size && memcmp(p, m->bytes, m->size) == 0) return m->kind;
    }
    if (is_pickle(p, size)) return FILE_KIND_PICKLE;
    if (is_tar(p, size)) return FILE_KIND_TAR;
    p = text_start(p, &size);
    if (is_html(p, size)) return FILE_KIND_HTML;
    return is_json(p, size) ? FILE_KIND_JSON : FILE_KIND_UNKNOWN;
}

err file_kind_refuse(enum file_kind wanted, const void *data, size_t size)
{
    enum file_kind kind = file_kind_of(data, size);
    if (kind == wanted || kind == FILE_KIND_UNKNOWN) return ERR_NONE;
    const char *remedy = kinds[kind].remedy;
    return err_make(ERR_INPUT, "is %s, expected %s%s%s", kinds[kind].name, kinds[wanted].name,
                    *remedy ? "; " : "", remedy);
}
