#include "coordinator/store/wal.h"

#include "base/file.h"
#include "base/limits.h"

#include <string.h>
#include <sys/stat.h>

/* From "WAL-mode File Format" of SQLite's documentation. Numbers are big-endian; the checksums read
 * words in the order of bytes that the magic number says. */
enum { HEADER = 32, FRAME = 24, MAGIC = 0x377f0682, PAGE_LEAST = 512, PAGE_MOST = 65536 };

struct sums {
    uint32_t a, b;
};

static uint32_t big(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t little(const uint8_t *p)
{
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static void add(struct sums *s, const uint8_t *p, size_t size, bool is_big)
{
    for (size_t i = 0; i + 8 <= size; i += 8) {
        s->a += (is_big ? big(p + i) : little(p + i)) + s->b;
        s->b += (is_big ? big(p + i + 4) : little(p + i + 4)) + s->a;
    }
}

static bool equals(const struct sums *s, const uint8_t *p)
{
    return s->a == big(p) && s->b == big(p + 4);
}

/* The number of commits from the first wrong frame on. The checksum of each frame starts from that
 * of the frame before, as it is stored there, so frames behind a wrong one can still be told from
 * old ones, which also have another salt. */
static size_t commits_cut_off(const struct file_map *map, size_t page, bool is_big)
{
    const uint8_t *salt = map->data + 16, *before = map->data + 24;
    size_t commits = 0;
    bool cut = false;
    for (size_t at = HEADER; at + FRAME + page <= map->size; at += FRAME + page) {
        const uint8_t *frame = map->data + at;
        struct sums s = {big(before), big(before + 4)};
        add(&s, frame, 8, is_big);
        add(&s, frame + FRAME, page, is_big);
        bool ours = !memcmp(frame + 8, salt, 8), whole = ours && equals(&s, frame + 16);
        bool first = !whole && !cut;
        cut |= !whole;
        if (cut && big(frame + 4) && (whole || (first && ours))) commits++;
        before = frame + 16;
    }
    return commits;
}

/* SQLite removes the log of a database that is absent or empty, and with it every commit since the
 * last checkpoint: a start in a moment in which the database was moved away would lose them. */
static err check_database(const char *data_dir, const char *log)
{
    char path[LIMIT_PATH_BYTES];
    struct stat is;
    TRY(file_join(path, sizeof path, data_dir, "fedlora.db"));
    bool has = stat(path, &is) == 0 && is.st_size > 0;
    if (has) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s is absent or empty, but %s has commits of it: put the database back beside "
                    "it, or restore the whole folder from a backup",
                    path, log);
}

err wal_check(const char *data_dir)
{
    char path[LIMIT_PATH_BYTES];
    struct file_map map = {0};
    struct sums s = {0};
    TRY(file_join(path, sizeof path, data_dir, "fedlora.db-wal"));
    if (!file_exists(path)) return ERR_NONE;
    TRY(file_map_open(&map, path));
    if (map.size > HEADER) {
        err e = check_database(data_dir, path);
        if (err_is(e)) file_map_close(&map);
        TRY(e);
    }
    bool damaged = false;
    if (map.size > HEADER) {
        bool is_big = map.data[3] & 1;
        size_t page = big(map.data + 8);
        add(&s, map.data, 24, is_big);
        damaged = (big(map.data) & ~1u) != MAGIC || !equals(&s, map.data + 24) ||
                  page < PAGE_LEAST || page > PAGE_MOST;
        if (!damaged) damaged = commits_cut_off(&map, page, is_big) > 1;
    }
    file_map_close(&map);
    if (!damaged) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s is damaged, and what was committed last would be lost: restore the whole "
                    "folder from a backup, or move this file away to go back to the state before",
                    path);
}
