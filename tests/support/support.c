#include "tests/support/support.h"

#include "base/file.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void support_ok(err e, const char *call, const char *file, int line)
{
    cr_assert(!err_is(e), "%s:%d: %s: %s", file, line, call, e.text);
}

void support_refused(err e, enum err_kind kind, const char *part, const char *call,
                     const char *file, int line)
{
    cr_assert(err_is(e), "%s:%d: %s: succeeded, expected \"%s\"", file, line, call, part);
    cr_assert_eq(e.kind, kind, "%s:%d: %s: kind %d, expected %d: %s", file, line, call, (int)e.kind,
                 (int)kind, e.text);
    cr_assert(strstr(e.text, part) != NULL, "%s:%d: %s: \"%s\", expected \"%s\" in it", file, line,
              call, e.text, part);
}

void support_source(char *out, size_t bytes, const char *name)
{
    ok(file_join(out, bytes, FEDLORA_SOURCE_DIR, name));
}

bool support_has_shared(const char *name)
{
    char path[SUPPORT_PATH_BYTES];
    snprintf(path, sizeof path, "%s/../shared/%s", FEDLORA_SOURCE_DIR, name);
    return access(path, R_OK) == 0;
}

void support_shared(char *out, size_t bytes, const char *name)
{
    if (!support_has_shared(name)) cr_skip_test("../shared/%s is not here", name);
    int n = snprintf(out, bytes, "%s/../shared/%s", FEDLORA_SOURCE_DIR, name);
    cr_assert(n > 0 && (size_t)n < bytes);
}

void support_dir_make(char out[SUPPORT_PATH_BYTES])
{
    const char *root = getenv("TMPDIR");
    snprintf(out, SUPPORT_PATH_BYTES, "%.4000s/fedlora-test-XXXXXX", root && *root ? root : "/tmp");
    cr_assert_not_null(mkdtemp(out), "%s", out);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

void support_dir_remove(const char *dir)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

double support_distance(const float *got, const float *want, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - want[i];
        difference += d * d;
        norm += (double)want[i] * want[i];
    }
    if (isnan(difference) || isnan(norm)) return INFINITY;
    if (norm == 0) return difference == 0 ? 0 : INFINITY;
    return sqrt(difference / norm);
}

double support_distance_max(const float *got, const float *want, size_t n)
{
    double difference = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]), w = fabs((double)want[i]);
        if (isnan(d) || isnan(w)) return INFINITY;
        if (d > difference) difference = d;
        if (w > largest) largest = w;
    }
    if (largest == 0) return difference == 0 ? 0 : INFINITY;
    return difference / largest;
}

const char *support_device(void)
{
    const char *asked = getenv("FEDLORA_TEST_DEVICE");
    return asked ? asked : "cpu";
}
