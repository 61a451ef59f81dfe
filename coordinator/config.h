/* fedlorad's options: one table makes the configuration file's keys, the flags, the defaults, the
 * help and the sample file. See base/option.h for precedence and errors. */
#ifndef COORDINATOR_CONFIG_H
#define COORDINATOR_CONFIG_H

#include "base/log.h"
#include "base/option.h"

#include <stdbool.h>

struct config {
    const char *listen, *ca, *cert, *key; /* [server] */
    int64_t threads;
    const char *path; /* [store] */
    int64_t keep_states, keep_updates;
    uint64_t reserve_bytes, upload_age_ms;
    const char *ledger_key;                    /* [privacy]; NULL: no private runs */
    const char *federation, *members, *admins; /* [federation]; lists with commas as written */
    uint64_t update_bytes_max;                 /* [limits] */
    uint64_t absent_ms, retry_ms, poll_ms;
    double calls_per_second;
    int log_level; /* [log]: enum log_level */
    bool log_json;
    /* command line only */
    const char *file;
    struct option_list set;
    bool check, help, version, sample;

    struct option_list allowed, admin_ids; /* `members` and `admins`, split and checked */
    struct arena arena;
};

/* Reads the arguments (without the program's name), then the file and --set. With help, version or
 * sample set nothing else is filled in. */
err config_open(struct config *out, int argc, char **argv);
void config_close(struct config *config);
err config_help(struct bytes *out);
err config_sample(struct bytes *out);
bool config_allows(const struct config *config, const char *member);
/* Every admin certificate of the authority, unless the configuration names some. */
bool config_allows_admin(const struct config *config, const char *admin);

/* --check: files and certificates, the address free, the data folder writable with room left and
 * not in use. ERR_INPUT or ERR_MACHINE naming the first thing wrong. Starts nothing and leaves
 * nothing. */
err config_check(const struct config *config, struct bytes *report);
/* The file of privacy.ledger_key, if there is one: else a run would trip over it once all joined.
 */
err config_check_ledger_key(const struct config *config);

#endif
