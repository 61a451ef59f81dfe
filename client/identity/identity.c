#include "client/identity/identity.h"

#include "base/file.h"
#include "proto/certificate.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY_BEGIN "-----BEGIN PRIVATE KEY-----"
#define KEY_END "-----END PRIVATE KEY-----"

/* ---------------------------------------------------------------- files */

err identity_dir_open(struct identity_dir *out, const char *dir)
{
    struct identity_dir d = {0};
    TRY(file_make_dirs(dir));
    char *whole = realpath(dir, NULL);
    if (whole == NULL) return err_sys(errno, "%s", dir);
    err e = ERR_NONE;
    TRY_OUT(e, file_join(d.dir, sizeof d.dir, whole, ""));
    d.dir[strlen(whole)] = 0; /* without the slash at the end */
    TRY_OUT(e, file_join(d.ca, sizeof d.ca, whole, "ca.pem"));
    TRY_OUT(e, file_join(d.member, sizeof d.member, whole, "member.pem"));
    TRY_OUT(e, file_join(d.pending, sizeof d.pending, whole, "enroll.key"));
    TRY_OUT(e, file_join(d.config, sizeof d.config, whole, IDENTITY_CONFIG));
    if (access(whole, W_OK | X_OK) != 0) e = err_sys(errno, "%s: cannot write there", whole);
    if (!err_is(e)) *out = d;
out:
    free(whole);
    return e;
}

/* The owner of a file that is written by root: of the file that it replaces, else of its folder.
 * The service usually has a user of its own, and an operator who enrols as root would otherwise
 * leave a key that the running service cannot read and later not renew. False: the file stays
 * root's. */
static bool find_owner(struct stat *out, const char *path)
{
    char parent[LIMIT_PATH_BYTES];
    if (geteuid() != 0) return false;
    if (lstat(path, out) == 0 && out->st_uid != 0) return true;
    const char *slash = strrchr(path, '/');
    snprintf(parent, sizeof parent, "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    return stat(parent, out) == 0 && out->st_uid != 0;
}

/* lchown(), because the owner of the folder could put a symbolic link in the file's place. */
err identity_write(const char *path, const struct bytes *content, bool secret)
{
    struct stat owner;
    bool give = find_owner(&owner, path);
    TRY(secret ? file_write_secret(path, content->data, content->size, /*replace*/ true)
               : file_write(path, content->data, content->size, /*replace*/ true));
    if (give && lchown(path, owner.st_uid, owner.st_gid) != 0)
        return err_sys(errno, "%s: giving it to user %u", path, (unsigned)owner.st_uid);
    return ERR_NONE;
}

err identity_read(struct bytes *out, bool *found, const char *path)
{
    char *text = NULL;
    size_t size = 0;
    *found = file_exists(path);
    if (!*found) return ERR_NONE;
    TRY(file_read_all(&text, &size, path, IDENTITY_FILE_BYTES));
    err e = bytes_append(out, text, size);
    sodium_memzero(text, size);
    free(text);
    return e;
}

/* ---------------------------------------------------------------- notes and keys */

/* Only before the first block, so that nothing in a certificate can look like a note. */
bool identity_note(char out[IDENTITY_NOTE_BYTES], const char *text, const char *name)
{
    const char *end = strstr(text, "-----BEGIN");
    size_t n = strlen(name);
    /* The block may begin within a line, so a line may start behind it. */
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (end != NULL && line >= end) return false;
        if (strncmp(line, name, n) != 0 || strncmp(line + n, ": ", 2) != 0) continue;
        const char *value = line + n + 2;
        size_t size = strcspn(value, "\n");
        if (size == 0 || size >= IDENTITY_NOTE_BYTES) return false;
        memcpy(out, value, size);
        out[size] = 0;
        return true;
    }
    return false;
}

err identity_key(struct bytes *out, const char *text)
{
    const char *begin = strstr(text, KEY_BEGIN), *end = begin ? strstr(begin, KEY_END) : NULL;
    if (end == NULL) return err_make(ERR_INPUT, "no private key in PEM form (" KEY_BEGIN ")");
    TRY(bytes_append(out, begin, (size_t)(end - begin) + strlen(KEY_END)));
    return bytes_append(out, "\n", 1);
}

/* ---------------------------------------------------------------- a new certificate */

/* Early by up to a tenth of the life, so that members that enrolled on one day do not renew in one
 * minute. A certificate begins CERTIFICATE_EARLY_S before it was made. */
static int64_t renewal_of(const struct certificate_issued *is)
{
    int64_t made = is->begins_s + CERTIFICATE_EARLY_S < is->ends_s
                       ? is->begins_s + CERTIFICATE_EARLY_S
                       : is->begins_s;
    int64_t life = is->ends_s - made, jitter = life / 10;
    if (jitter > UINT32_MAX - 1) jitter = UINT32_MAX - 1;
    return made + life * 2 / 3 - (int64_t)randombytes_uniform((uint32_t)jitter + 1);
}

static err check(struct certificate_issued *is, const struct identity_new *new)
{
    struct bytes request = {.max = CERTIFICATE_REQUEST_BYTES};
    err e = certificate_make_request(&request, new->key);
    const struct certificate_order order = {.request = request.data,
                                            .request_size = request.size,
                                            .federation = new->self.federation,
                                            .id = new->self.id,
                                            .role = new->self.role};
    if (!err_is(e)) e = certificate_check(is, new->chain, new->ca, &order);
    bytes_close(&request);
    return err_is(e) ? err_in(e, "the new certificate") : e;
}

/* Roots change only while an authority is replaced, so the file is mostly left alone, which also
 * works where this user may not write it. */
static err write_roots(const char *path, const char *ca)
{
    struct bytes old = {.max = IDENTITY_FILE_BYTES};
    bool found = false;
    err e = identity_read(&old, &found, path);
    bool same = !err_is(e) && found && old.data != NULL && strcmp((const char *)old.data, ca) == 0;
    bytes_close(&old);
    struct bytes new = {.data = (uint8_t *)(uintptr_t)ca, .size = strlen(ca)};
    return same ? ERR_NONE : identity_write(path, &new, /*secret*/ false);
}

err identity_install(int64_t *ends_s, int64_t *renew_s, const struct identity_files *files,
                     const struct identity_new *new)
{
    struct certificate_issued is;
    struct bytes text = {.max = IDENTITY_FILE_BYTES};
    err e;
    TRY(check(&is, new));
    int64_t renew = new->renew_at > 0 ? new->renew_at : renewal_of(&is);
    TRY_OUT(e, bytes_printf(&text, "Identity: fl://%s/%s/%s\n" IDENTITY_NOTE_RENEW ": %lld\n",
                            new->self.federation, rpc_role_name(new->self.role), new->self.id,
                            (long long)renew));
    if (new->token != NULL)
        TRY_OUT(e, bytes_printf(&text, IDENTITY_NOTE_TOKEN ": %s\n", new->token));
    const char *first = strstr(new->chain, "-----BEGIN"); /* check() has found a certificate */
    TRY_OUT(e, bytes_printf(&text, "%s%s", first, new->key));
    TRY_OUT(e, write_roots(files->ca, new->ca));
    TRY_OUT(e, identity_write(files->member, &text, /*secret*/ true));
    *ends_s = is.ends_s;
    *renew_s = renew;
out:
    if (text.data != NULL) sodium_memzero(text.data, text.capacity);
    bytes_close(&text);
    return e;
}
