/* `fedlorad ca renew`: a new certificate for the server, or a new issuing key, with the names of
 * the old one. A timer of the package runs it every day with --due, so that nobody has to think of
 * it.
 *
 * The server keeps its key, unless --new-key is given, so that the new certificate takes the old
 * one's place by one rename. */
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "coordinator/subcommand.h"
#include "proto/certificate.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct ca_renew {
    struct subcommand_common common;
    const char *dir;
    uint64_t server_ms, issuing_ms;
    bool due, issuing, new_key;
};
#undef AT
#define AT(member) .at = offsetof(struct ca_renew, member)
static const struct option_row rows[] = {
    {.flag = "dir",
     .kind = OPTION_TEXT,
     AT(dir),
     .required = true,
     .value = "DIR",
     .help = "folder of the files of fedlorad ca init"},
    {.flag = "due",
     .kind = OPTION_FLAG,
     AT(due),
     .help = "do nothing before two thirds of the old certificate's life are over"},
    {.flag = "issuing",
     .kind = OPTION_FLAG,
     AT(issuing),
     .help = "make a new issuing key, signed by ca.key, in place of a new certificate of the "
             "server; for the machine that keeps ca.key"},
    {.flag = "new-key",
     .kind = OPTION_FLAG,
     AT(new_key),
     .help = "also make a new key of the server, because the old one is lost or was seen"},
    {.flag = "server-life",
     .kind = OPTION_DURATION,
     AT(server_ms),
     .fallback = "90d",
     .value = "TIME",
     .help = "life of the server's certificate"},
    {.flag = "issuing-life",
     .kind = OPTION_DURATION,
     AT(issuing_ms),
     .fallback = "730d",
     .value = "TIME",
     .help = "life of the issuing key"},
};

/* A certificate that is renewed, and the authority that signs it: "server" and "issuing". */
struct pair {
    const char *name, *signer;
    uint64_t life_ms;
    char cert_path[LIMIT_PATH_BYTES], key_path[LIMIT_PATH_BYTES];
    char *cert, *key, *signer_cert, *signer_key;
    size_t key_size, signer_key_size;
};

static void pair_close(struct pair *p)
{
    if (p->key) sodium_memzero(p->key, p->key_size);
    if (p->signer_key) sodium_memzero(p->signer_key, p->signer_key_size);
    free(p->cert);
    free(p->key);
    free(p->signer_cert);
    free(p->signer_key);
}

static err read_one(char **out, size_t *size, char path[LIMIT_PATH_BYTES], const char *dir,
                    const char *name, const char *suffix)
{
    char file[32];
    snprintf(file, sizeof file, "%s.%s", name, suffix);
    TRY(file_join(path, LIMIT_PATH_BYTES, dir, file));
    return file_read_all(out, size, path, CERTIFICATE_PEM_BYTES);
}

static err read_pair(struct pair *p, const char *dir, bool new_key)
{
    char path[LIMIT_PATH_BYTES];
    size_t size;
    TRY(read_one(&p->cert, &size, p->cert_path, dir, p->name, "pem"));
    err e = read_one(&p->key, &p->key_size, p->key_path, dir, p->name, "key");
    if (!new_key) TRY(e);
    TRY(read_one(&p->signer_cert, &size, path, dir, p->signer, "pem"));
    return read_one(&p->signer_key, &p->signer_key_size, path, dir, p->signer, "key");
}

static err write_new(const struct pair *p, const struct bytes *chain, const struct bytes *key)
{
    /* The key first: a certificate without its key would be used by nobody. */
    if (key->size) TRY(file_write_secret(p->key_path, key->data, key->size, /*replace*/ true));
    TRY(file_write(p->cert_path, chain->data, chain->size, /*replace*/ true));
    (void)chmod(p->cert_path, 0644);
    return ERR_NONE;
}

static err report(const struct ca_renew *o, const struct pair *p, int64_t ends_s, bool renewed)
{
    struct bytes text = {.max = 4096};
    int64_t days = (ends_s - (int64_t)(text_wall_ms() / 1000)) / (24 * 60 * 60);
    if (!o->common.json) {
        printf("%s: %s; valid for %lld days\n", p->cert_path,
               renewed ? "renewed; systemctl reload fedlorad" : "not due", (long long)days);
        return ERR_NONE;
    }
    json_t *object = json_pack("{s:s,s:b,s:I}", "cert", p->cert_path, "renewed", renewed,
                               "not_after", (json_int_t)ends_s);
    err e = json_write(&text, object);
    if (!err_is(e)) printf("%s\n", (const char *)text.data);
    json_decref(object);
    bytes_close(&text);
    return e;
}

static bool is_due(const struct certificate_issued *old)
{
    int64_t now = (int64_t)(text_wall_ms() / 1000);
    return now >= old->begins_s + (old->ends_s - old->begins_s) / 3 * 2;
}

/* The issuing key is always a new one, because the old one may be the reason. */
static err renew(const struct ca_renew *o, struct pair *p)
{
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES}, key = {.max = CERTIFICATE_PEM_BYTES};
    struct certificate_issued old, new;
    bool new_key = o->issuing || o->new_key;
    err e = ERR_NONE;
    TRY_OUT(e, read_pair(p, o->dir, new_key));
    TRY_OUT(e, certificate_read(&old, p->cert));
    if (o->due && !is_due(&old)) {
        e = report(o, p, old.ends_s, false);
        goto out;
    }
    if (new_key) TRY_OUT(e, certificate_make_key(&key));
    const struct certificate_authority signer = {p->signer_cert, p->signer_key};
    TRY_OUT(e, certificate_renew(&chain, p->cert, key.size ? (const char *)key.data : p->key,
                                 &signer, (int64_t)(p->life_ms / 1000)));
    TRY_OUT(e, certificate_read(&new, (const char *)chain.data));
    TRY_OUT(e, write_new(p, &chain, &key));
    e = report(o, p, new.ends_s, true);
out:
    if (key.data) sodium_memzero(key.data, key.size);
    bytes_close(&chain);
    bytes_close(&key);
    return e;
}

static err run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct ca_renew *o = options;
    struct pair server = {.name = "server", .signer = "issuing", .life_ms = o->server_ms};
    struct pair issuing = {.name = "issuing", .signer = "ca", .life_ms = o->issuing_ms};
    struct pair *p = o->issuing ? &issuing : &server;
    (void)arguments, (void)arena;
    err e = renew(o, p);
    pair_close(p);
    return e;
}

const struct subcommand subcommand_ca_renew = {
    .name = "ca renew",
    .purpose = "renew the server's certificate, or the issuing key",
    .usage = "--dir DIR [--due] [--new-key] [--issuing]",
    .example = "fedlorad ca renew --dir /etc/fedlora --due",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct ca_renew),
    .run = run,
};
