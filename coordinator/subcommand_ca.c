/* `fedlorad ca init`: the authority of a new federation, the server's certificate, and those of the
 * first operators. Everything is made before the first file is written, so that an error leaves an
 * empty folder. */
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "coordinator/subcommand.h"
#include "proto/certificate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CA_ADMINS_MAX = 16, CA_FILES_MAX = 7 + CA_ADMINS_MAX };
#define CA_CLIENT_CONFIG "client.ini"

struct ca_init {
    struct subcommand_common common;
    const char *federation, *dir;
    struct option_list hosts, admins;
    uint64_t root_ms, issuing_ms, server_ms, admin_ms;
};
#undef AT
#define AT(member) .at = offsetof(struct ca_init, member)
static const struct option_row rows[] = {
    {.flag = "federation",
     .kind = OPTION_TEXT,
     AT(federation),
     .required = true,
     .value = "NAME",
     .help = "name of the federation, as in every certificate's identity"},
    {.flag = "dir",
     .kind = OPTION_TEXT,
     AT(dir),
     .required = true,
     .value = "DIR",
     .help = "folder of the new files; it is made if it is missing"},
    {.flag = "host",
     .kind = OPTION_LIST,
     AT(hosts),
     .value = "NAME",
     .help = "name or address by which clients reach the server, beside localhost; may be "
             "repeated"},
    {.flag = "admin",
     .kind = OPTION_LIST,
     AT(admins),
     .value = "ID",
     .help = "also make certificate and key of this operator in DIR/ID.pem; may be repeated"},
    {.flag = "root-life",
     .kind = OPTION_DURATION,
     AT(root_ms),
     .fallback = "3650d",
     .value = "TIME",
     .help = "life of the root"},
    {.flag = "issuing-life",
     .kind = OPTION_DURATION,
     AT(issuing_ms),
     .fallback = "730d",
     .value = "TIME",
     .help = "life of the key that signs members' certificates"},
    {.flag = "server-life",
     .kind = OPTION_DURATION,
     AT(server_ms),
     .fallback = "90d",
     .value = "TIME",
     .help = "life of the server's certificate"},
    {.flag = "admin-life",
     .kind = OPTION_DURATION,
     AT(admin_ms),
     .fallback = "7d",
     .value = "TIME",
     .help = "life of the operators' certificates, which renew themselves when they are used"},
};

struct made {
    char name[LIMIT_NAME_BYTES + 8];
    const char *what;
    struct bytes text;
    bool secret;
};
struct made_all {
    struct made file[CA_FILES_MAX];
    size_t count;
};

/* The order of the files is that of the report. */
static struct bytes *add(struct made_all *all, const char *name, const char *what, bool secret)
{
    REQUIRE(all->count < CA_FILES_MAX);
    struct made *file = &all->file[all->count++];
    *file = (struct made){.what = what, .secret = secret, .text.max = CERTIFICATE_PEM_BYTES};
    snprintf(file->name, sizeof file->name, "%s", name);
    return &file->text;
}

/* Keys are wiped, also after an error. */
static void close_all(struct made_all *all)
{
    for (size_t i = 0; i < all->count; i++) {
        if (all->file[i].text.data) sodium_memzero(all->file[i].text.data, all->file[i].text.size);
        bytes_close(&all->file[i].text);
    }
}

static int64_t seconds(uint64_t ms)
{
    return (int64_t)(ms / 1000);
}

/* Certificate and key in one file, so that a renewal replaces both by one rename. */
static err make_admin(struct made_all *all, const struct ca_init *o, const char *id,
                      const struct certificate_authority *issuer)
{
    char name[LIMIT_NAME_BYTES + 8];
    struct certificate_issued issued;
    struct bytes key = {.max = CERTIFICATE_PEM_BYTES};
    struct bytes request = {.max = CERTIFICATE_REQUEST_BYTES};
    snprintf(name, sizeof name, "%s.pem", id);
    struct bytes *out = add(all, name, "certificate and key of an operator", true);
    err e = ERR_NONE;
    TRY_OUT(e, certificate_make_key(&key));
    TRY_OUT(e, certificate_make_request(&request, (const char *)key.data));
    const struct certificate_order order = {.request = request.data,
                                            .request_size = request.size,
                                            .federation = o->federation,
                                            .id = id,
                                            .role = RPC_ADMIN,
                                            .life_s = seconds(o->admin_ms)};
    TRY_OUT(e, certificate_sign(out, &issued, issuer, &order));
    TRY_OUT(e, bytes_append(out, key.data, key.size));
out:
    if (key.data) sodium_memzero(key.data, key.size);
    bytes_close(&key);
    bytes_close(&request);
    return e;
}

/* So that the first operator's commands on this machine need --config alone. The port is that of
 * the sample configuration; paths are absolute, because commands are typed anywhere. */
static err make_client_config(struct made_all *all, const struct ca_init *o)
{
    char here[LIMIT_PATH_BYTES] = "", path[LIMIT_PATH_BYTES];
    const char *dir = o->dir, *id = o->admins.item[0];
    TRY(file_join(path, sizeof path, dir, CA_CLIENT_CONFIG));
    if (file_exists(path)) return ERR_NONE;
    if (*dir != '/') {
        if (!getcwd(here, sizeof here)) return err_sys(errno, "the current folder");
        TRY(file_join(path, sizeof path, here, dir));
        dir = path;
    }
    struct bytes *out =
        add(all, CA_CLIENT_CONFIG, "configuration of the operator's commands", false);
    return bytes_printf(out,
                        "# Made by `fedlorad ca init` for the operator %s.\n\n[server]\n"
                        "address = %s:7443\nca = %s/ca.pem\ncert = %s/%s.pem\nkey = %s/%s.pem\n",
                        id, o->hosts.count ? o->hosts.item[0] : "localhost", dir, dir, id, dir, id);
}

/* The root signs the issuer and is not needed again until that one is replaced. */
static err make_files(struct made_all *all, const struct ca_init *o)
{
    struct bytes *root = add(all, "ca.pem", "root certificate, which everybody trusts", false);
    struct bytes *root_key = add(all, "ca.key", "key of the root: keep it offline", true);
    struct bytes *issuing = add(all, "issuing.pem", "certificate of the issuing key", false);
    struct bytes *issuing_key = add(all, "issuing.key", "issuing key, [enroll] key", true);
    struct bytes *server = add(all, "server.pem", "certificate of the server", false);
    struct bytes *server_key = add(all, "server.key", "key of the server", true);
    TRY(certificate_make_key(root_key));
    TRY(certificate_make_root(root, (const char *)root_key->data, o->federation,
                              seconds(o->root_ms)));
    TRY(certificate_make_key(issuing_key));
    TRY(certificate_make_issuer(
        issuing, (const char *)issuing_key->data,
        &(struct certificate_authority){(const char *)root->data, (const char *)root_key->data},
        o->federation, seconds(o->issuing_ms)));
    const struct certificate_authority issuer = {(const char *)issuing->data,
                                                 (const char *)issuing_key->data};
    TRY(certificate_make_key(server_key));
    const struct certificate_server names = {.federation = o->federation,
                                             .host = o->hosts.item,
                                             .hosts = o->hosts.count,
                                             .life_s = seconds(o->server_ms)};
    TRY(certificate_make_server(server, (const char *)server_key->data, &issuer, &names));
    for (size_t i = 0; i < o->admins.count; i++)
        TRY(make_admin(all, o, o->admins.item[i], &issuer));
    return o->admins.count ? make_client_config(all, o) : ERR_NONE;
}

/* Nothing is ever overwritten: a lost root is the end of a federation. */
static err check_free(const struct made_all *all, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < all->count; i++) {
        TRY(file_join(path, sizeof path, dir, all->file[i].name));
        if (file_exists(path))
            return err_make(ERR_INPUT, "%s exists already; nothing was made", path);
    }
    return ERR_NONE;
}

static err write_files(const struct made_all *all, const char *dir)
{
    char path[LIMIT_PATH_BYTES];
    for (size_t i = 0; i < all->count; i++) {
        const struct made *file = &all->file[i];
        TRY(file_join(path, sizeof path, dir, file->name));
        TRY(file_write(path, file->text.data, file->text.size, /*replace*/ false));
        /* Keys keep the mode of the process's umask, 0600. Others must read the certificates. */
        if (!file->secret) (void)chmod(path, 0644);
    }
    return ERR_NONE;
}

/* The hash of the root is what institutions compare, so it is printed at the first occasion. */
static err report(const struct made_all *all, const struct ca_init *o)
{
    char hash[ENROLL_HASH_TEXT_BYTES];
    struct enroll_hash root;
    TRY(certificate_hash(&root, (const char *)all->file[0].text.data));
    enroll_token_hash_text(hash, &root);
    if (!o->common.json) {
        for (size_t i = 0; i < all->count; i++)
            printf("%s/%-12s %s\n", o->dir, all->file[i].name, all->file[i].what);
        printf("root hash: %s\n", hash);
        return ERR_NONE;
    }
    struct bytes text = {.max = CERTIFICATE_PEM_BYTES};
    json_t *files = json_array();
    for (size_t i = 0; i < all->count; i++)
        json_array_append_new(files, json_string(all->file[i].name));
    json_t *root_object = json_pack("{s:s,s:s,s:s,s:o}", "federation", o->federation, "dir", o->dir,
                                    "ca_hash", hash, "files", files);
    err e = json_write(&text, root_object);
    if (!err_is(e)) printf("%s\n", (const char *)text.data);
    json_decref(root_object);
    bytes_close(&text);
    return e;
}

/* An operator called "ca" would overwrite nothing, but would have a file that looks like the
 * root. */
static err check_names(const struct ca_init *o)
{
    if (!text_is_name(o->federation, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT,
                        "--federation: \"%.80s\" is not a name (letters, digits, '.', "
                        "'_', '-')",
                        o->federation);
    if (o->admins.count > CA_ADMINS_MAX)
        return err_make(ERR_INPUT, "--admin: %zu names, at most %d", o->admins.count,
                        CA_ADMINS_MAX);
    for (size_t i = 0; i < o->admins.count; i++) {
        const char *id = o->admins.item[i];
        bool taken = !strcmp(id, "ca") || !strcmp(id, "issuing") || !strcmp(id, "server");
        if (taken || !text_is_name(id, LIMIT_NAME_BYTES - 1))
            return err_make(ERR_INPUT, "--admin: \"%.80s\" cannot be the name of an operator here",
                            id);
    }
    return ERR_NONE;
}

static err run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct ca_init *o = options;
    static struct made_all all;
    (void)arguments, (void)arena;
    TRY(check_names(o));
    err e = make_files(&all, o);
    if (!err_is(e)) e = check_free(&all, o->dir);
    if (!err_is(e)) e = file_make_dirs(o->dir);
    if (!err_is(e)) e = write_files(&all, o->dir);
    if (!err_is(e)) e = report(&all, o);
    close_all(&all);
    return e;
}

const struct subcommand subcommand_ca_init = {
    .name = "ca init",
    .purpose = "make the authority of a new federation and the server's certificate",
    .usage = "--federation NAME --dir DIR [--host NAME]... [--admin ID]...",
    .example = "fedlorad ca init --federation clinics --dir /etc/fedlora --host fed.example.org "
               "--admin ops",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct ca_init),
    .run = run,
};
