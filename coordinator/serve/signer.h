/* Signs certificates in a worker, because a command that asks another authority may take seconds.
 * The loop thread fills a job, pushes it, and gets it back by `done` (coordinator/work/work.h).
 * The files of the authority are read for each certificate, so replacing them needs no restart, and
 * its key is in memory only while it is used. */
#ifndef COORDINATOR_SIGNER_H
#define COORDINATOR_SIGNER_H

#include "coordinator/config.h"
#include "coordinator/work/work.h"
#include "proto/certificate.h"

enum { SIGNER_QUEUE = 256 };

struct signer_job {
    struct work_job job; /* the first member; `result` says whether the rest was filled in */
    const struct config *config;
    uint8_t request[CERTIFICATE_REQUEST_BYTES]; /* DER or PEM, checked by the caller */
    size_t request_size;
    char id[LIMIT_NAME_BYTES];
    enum rpc_role role;
    /* The results. The caller closes `chain`. */
    struct bytes chain; /* PEM */
    struct certificate_issued issued;
};

/* `options` has the name, the data folder and the callbacks; the rest is set here. */
err signer_open(struct work **out, const struct work_options *options);
/* Whether certificates can be signed; ERR_STATE says what is missing in the configuration. */
err signer_check(const struct config *config);

/* For --check: signs a certificate that nobody gets, and checks it. A command is only looked for,
 * because its certificates may be recorded elsewhere. */
err signer_probe(const struct config *config);

/* For signer_open() and tests: signs one job in this thread. */
err signer_sign(struct signer_job *job);

#endif
