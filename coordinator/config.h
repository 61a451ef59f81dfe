/* fedlorad's options. One table gives the keys of the configuration file, the flags, the defaults,
 * the help and the sample file. Precedence and errors: base/option.h. */
#ifndef COORDINATOR_CONFIG_H
#define COORDINATOR_CONFIG_H

#include "base/log.h"
#include "base/option.h"

#include <stdbool.h>

/* A second machine with a member's certificate, while the first is alive: refused, or it takes the
 * place of the first. */
enum config_sessions { CONFIG_SESSIONS_REFUSE, CONFIG_SESSIONS_REPLACE };

struct config {
    const char *listen, *address, *ca, *cert, *key; /* [server]; address: as clients reach it */
    int64_t threads;
    const char *path; /* [store] */
    const char *database;
    int64_t keep_states, keep_updates;
    uint64_t reserve_bytes, upload_age_ms;
    uint64_t keep_finished_ms, keep_events_ms; /* 0: for ever */
    const char *archive;                       /* NULL: none */
    const char *ledger_key;                    /* [privacy]; NULL: private runs are refused */
    const char *audit_key;                     /* [audit]; NULL: DATA/audit/audit.key */
    const char *federation, *members, *admins; /* [federation]; lists as written, with commas */
    /* [enroll]; listen "": no institution can enrol; cert and key: of the issuing authority */
    const char *enroll_listen, *enroll_address, *signer, *enroll_cert, *enroll_key;
    uint64_t member_life_ms, admin_life_ms, signer_ms;
    uint64_t update_bytes_max; /* [limits] */
    uint64_t absent_ms, retry_ms, poll_ms;
    int sessions; /* enum config_sessions */
    double calls_per_second;
    int64_t open_runs, rounds_at_once;
    const char *http_listen; /* [http]; NULL or "": off */
    int log_level;           /* [log]: enum log_level */
    bool log_json;
    /* command line only */
    const char *file;
    struct option_list set;
    bool check, json, accept_copy, help, version, sample;

    struct option_list listed, listed_admins; /* `members` and `admins`, split and checked */
    /* Members and operators that may take part: first the file's, then those of config_allow(). */
    struct option_list allowed, admin_ids;
    bool any_admin; /* every admin certificate of the authority */
    struct arena arena;
    struct arena reread; /* holds `listed` and `listed_admins` after config_reread() */
    struct arena agreed; /* holds `allowed` and `admin_ids` after config_allow() */
};

/* Reads the arguments (without the program's name), then the file and --set. If help, version or
 * sample is set, nothing else is filled in. */
err config_open(struct config *out, int argc, char **argv);
void config_close(struct config *config);
/* Reads the same arguments and the file again, and takes from them what may change while the
 * service runs: `listed` and `listed_admins`, limits, retention, and the log. Those that may take
 * part follow with the next config_allow(). On an error nothing has changed. */
enum { CONFIG_CHANGES_BYTES = 512 };
struct config_changes {                 /* separated by blanks */
    char made[CONFIG_CHANGES_BYTES];    /* "limits.poll=45s log.level=debug" */
    char restart[CONFIG_CHANGES_BYTES]; /* keys of changed values that need a restart */
};
err config_reread(struct config *config, struct config_changes *changes, int argc, char **argv);
/* For config.c only: all but the lists (config_live.c). */
void config_take_live(struct config *config, const struct config *next,
                      struct config_changes *changes);
/* All rows, for the manual page of the configuration file. */
const struct option_set *config_options(void);
/* Replaces the lists of those that may take part by copies of these, which the store has. */
err config_allow(struct config *config, const struct option_list *members,
                 const struct option_list *admins);
/* The command of [enroll] signer = command:PATH; NULL: this process signs. */
const char *config_signer_command(const struct config *config);
err config_help(struct bytes *out);
err config_sample(struct bytes *out);
bool config_allows(const struct config *config, const char *member);
/* True for every admin certificate of the authority, unless the file names operators. */
bool config_allows_admin(const struct config *config, const char *admin);

/* --check: tests that files and certificates are good, that the address is free, that the data
 * folder is writable and has room left, and that its database can be read. The report has all
 * checks, as lines or with --json as one document; the error is the first that failed. Starts
 * nothing and leaves nothing behind. Beside a service that runs from this folder it writes nothing
 * there, and the report says that the service is running. */
err config_check(const struct config *config, struct bytes *report);
/* Reads the file of privacy.ledger_key if one is configured. Checked at the start, because the key
 * is used only when all members of a private run have joined. */
err config_check_ledger_key(const struct config *config);

#endif
