/* An upload in pieces, against a model in memory: it is opened at offsets, gets bytes, is closed,
 * its file is cut or grown as after a crash, and old files are swept. The input is a list of
 * operations of two bytes. The file never holds more than was announced, an accepted byte is at its
 * place, and a file with the announced digest is the upload. */
#include "coordinator/store/spool.h"
#include "base/file.h"
#include "tests/fuzz/folder.h"
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/spool.bin", NULL};
const int fuzz_runs = 800;

enum { UPLOAD = 96, OPERATIONS = 64 };

struct model {
    struct spool_key key;
    struct spool spool;
    bool open;
    uint8_t upload[UPLOAD], file[2 * UPLOAD]; /* what is sent; what must be in the file */
    size_t size;                              /* of the file */
};

static void must(bool yes)
{
    if (!yes) abort();
}

/* "" without a file. An owner has at most one upload. */
static void find_file(char path[FOLDER_PATH_BYTES])
{
    char spool[FOLDER_PATH_BYTES];
    folder_path(spool, "spool");
    path[0] = 0;
    DIR *dir = opendir(spool);
    must(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        must(!path[0]);
        must(!err_is(file_join(path, FOLDER_PATH_BYTES, spool, entry->d_name)));
    }
    closedir(dir);
}

static void compare(const struct model *m)
{
    char path[FOLDER_PATH_BYTES], *text = NULL;
    size_t size = 0;
    find_file(path);
    if (!path[0]) {
        must(m->size == 0);
        return;
    }
    must(!err_is(file_read_all(&text, &size, path, 1 << 20)));
    must(size == m->size && !memcmp(text, m->file, size));
    struct digest is = digest_of(text, size);
    if (size == UPLOAD && digest_equal(&is, &m->key.digest)) must(!memcmp(text, m->upload, UPLOAD));
    free(text);
    uint64_t counted = m->size <= UPLOAD ? m->size : 0;
    must(spool_received(folder, &m->key) == counted);
}

static void begin_upload(struct model *m, uint64_t offset)
{
    uint64_t here = spool_received(folder, &m->key);
    spool_close(&m->spool); /* a second connection takes over */
    m->open = false;
    err e = spool_open(&m->spool, folder, &m->key, offset, 0);
    must(err_is(e) == (offset > here));
    if (err_is(e)) return;
    m->open = true;
    m->size = offset;
    must(m->spool.received == offset && m->spool.resumed == (offset > 0));
}

static void append(struct model *m, uint8_t n, bool wrong)
{
    uint8_t bytes[256];
    if (!m->open) return;
    for (size_t i = 0; i < n; i++)
        bytes[i] = m->upload[(m->spool.received + i) % UPLOAD] ^ (wrong ? 1 : 0);
    bool fits = n <= UPLOAD - m->spool.received;
    err e = spool_append(&m->spool, bytes, n);
    must(err_is(e) == !fits);
    if (!fits) return;
    memcpy(m->file + m->size, bytes, n);
    m->size += n;
}

/* The process died: the tail of the file is lost, or the file system has extended it. */
static void crash(struct model *m, uint8_t size)
{
    char path[FOLDER_PATH_BYTES];
    spool_close(&m->spool);
    m->open = false;
    find_file(path);
    if (!path[0]) return;
    size_t after = size % (2 * UPLOAD);
    must(truncate(path, (off_t)after) == 0);
    if (after > m->size) memset(m->file + m->size, 0, after - m->size);
    m->size = after;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model m = {.spool.fd = -1};
    char spool[FOLDER_PATH_BYTES];
    bool first = folder_begin();
    folder_path(spool, "spool");
    if (first) must(mkdir(spool, 0700) == 0);
    for (size_t i = 0; i < UPLOAD; i++)
        m.upload[i] = (uint8_t)(i * 7 + 3);
    m.key = (struct spool_key){
        .digest = digest_of(m.upload, UPLOAD), .size = UPLOAD, .run = "run", .owner = "member"};
    for (size_t i = 0; i + 1 < size && i < (size_t)OPERATIONS * 2; i += 2) {
        uint8_t n = data[i + 1];
        switch (data[i] % 6) {
        case 0:
            begin_upload(&m, n);
            break;
        case 1:
            begin_upload(&m, spool_received(folder, &m.key));
            break;
        case 2:
        case 3:
            append(&m, n, data[i] % 6 == 3 && n % 4 == 0);
            break;
        case 4:
            crash(&m, n);
            break;
        default:
            spool_close(&m.spool);
            m.open = false;
        }
        compare(&m);
    }
    spool_close(&m.spool);
    folder_clear(spool);
    return 0;
}
