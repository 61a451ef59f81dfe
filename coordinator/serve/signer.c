#include "coordinator/serve/signer.h"

#include "base/file.h"
#include "coordinator/serve/signer_command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PEM_BYTES_MAX = 1 << 20 };

/* Asked before a job is queued, so that a coordinator without an authority says so at once. */
err signer_check(const struct config *config)
{
    if (config_signer_command(config) || config->enroll_key) return ERR_NONE;
    return err_make(ERR_STATE, "this coordinator cannot sign certificates: [enroll] cert and key, "
                               "or signer, are not set");
}

/* Reading two small files costs less than the signature, and lets an operator replace them at any
 * time. */
static err sign_here(struct signer_job *job, const struct certificate_order *order)
{
    const struct config *c = job->config;
    char *cert = NULL, *key = NULL;
    size_t cert_size = 0, key_size = 0;
    err e = ERR_NONE;
    TRY_OUT(e, file_check_secret(c->enroll_key));
    TRY_OUT(e, file_read_all(&cert, &cert_size, c->enroll_cert, PEM_BYTES_MAX));
    TRY_OUT(e, file_read_all(&key, &key_size, c->enroll_key, PEM_BYTES_MAX));
    e = certificate_sign(&job->chain, &job->issued, &(struct certificate_authority){cert, key},
                         order);
    if (err_is(e) && e.kind != ERR_INPUT) e = err_in(e, "%s", c->enroll_cert);
out:
    if (key) sodium_memzero(key, key_size);
    free(key);
    free(cert);
    /* Files of this machine are not the peer's fault. */
    if (err_is(e) && !cert_size) e.kind = ERR_MACHINE;
    return e;
}

/* The output of a command is checked before anybody gets it, because a certificate with a wrong
 * identity would be as good as a stolen one. */
static err sign_by_command(struct signer_job *job, const struct certificate_order *order)
{
    const struct config *c = job->config;
    struct bytes request = {.max = CERTIFICATE_REQUEST_BYTES};
    char *ca = NULL;
    size_t ca_size = 0;
    err e = ERR_NONE;
    TRY_OUT(e, certificate_request_pem(&request, order->request, order->request_size));
    TRY_OUT(e, file_read_all(&ca, &ca_size, c->ca, PEM_BYTES_MAX));
    const struct signer_command command = {.path = config_signer_command(c),
                                           .order = order,
                                           .request = &request,
                                           .timeout_ms = c->signer_ms};
    TRY_OUT(e, signer_command_run(&job->chain, &command));
    e = certificate_check(&job->issued, (const char *)job->chain.data, ca, order);
    if (err_is(e)) e = err_in(e, "the certificate that %s has printed", command.path);
out:
    free(ca);
    bytes_close(&request);
    return e;
}

/* The life depends on the role alone. Operators have a short one, because their certificates can do
 * more and renew themselves at each use. */
err signer_sign(struct signer_job *job)
{
    uint64_t life_ms =
        job->role == RPC_ADMIN ? job->config->admin_life_ms : job->config->member_life_ms;
    const struct certificate_order order = {.request = job->request,
                                            .request_size = job->request_size,
                                            .federation = job->config->federation,
                                            .id = job->id,
                                            .role = job->role,
                                            .life_s = (int64_t)(life_ms / 1000)};
    job->chain = (struct bytes){.max = CERTIFICATE_PEM_BYTES};
    err e = signer_check(job->config);
    if (err_is(e)) return e;
    return config_signer_command(job->config) ? sign_by_command(job, &order)
                                              : sign_here(job, &order);
}

/* A key that does not belong to its certificate, an authority that has ended, or one that does not
 * lead to the root would be noticed only when an institution enrols. */
static err probe_here(struct signer_job *job)
{
    const struct certificate_order order = {.request = job->request,
                                            .request_size = job->request_size,
                                            .federation = job->config->federation,
                                            .id = job->id,
                                            .role = job->role};
    char *ca = NULL;
    size_t size = 0;
    TRY(signer_sign(job));
    TRY(file_read_all(&ca, &size, job->config->ca, PEM_BYTES_MAX));
    err e = certificate_check(&job->issued, (const char *)job->chain.data, ca, &order);
    free(ca);
    return err_is(e) ? err_in(e, "a certificate signed by %s", job->config->enroll_cert) : e;
}

err signer_probe(const struct config *config)
{
    struct bytes key = {.max = CERTIFICATE_PEM_BYTES};
    struct bytes request = {.max = CERTIFICATE_REQUEST_BYTES};
    const char *command = config_signer_command(config);
    if (command)
        return access(command, X_OK) == 0 ? ERR_NONE : err_sys(errno, "enroll.signer: %s", command);
    struct signer_job *job = calloc(1, sizeof *job);
    if (!job) return err_sys(ENOMEM, "a certificate");
    *job = (struct signer_job){.config = config, .id = "check", .role = RPC_CLIENT};
    err e = certificate_make_key(&key);
    if (!err_is(e)) e = certificate_make_request(&request, (const char *)key.data);
    if (!err_is(e)) {
        memcpy(job->request, request.data, request.size);
        job->request_size = request.size;
        e = probe_here(job);
    }
    if (key.data) sodium_memzero(key.data, key.size);
    bytes_close(&key);
    bytes_close(&request);
    bytes_close(&job->chain);
    free(job);
    return e;
}

/* One after the other: a command may not like to be started twice at once. */
static void run(struct work_job *batch, struct store *store)
{
    (void)store;
    for (struct work_job *job = batch; job; job = job->next)
        job->result = signer_sign((struct signer_job *)job);
}

/* The queue is bounded; a peer that finds it full comes back later. */
err signer_open(struct work **out, const struct work_options *options)
{
    struct work_options o = *options;
    o.name = "signer";
    o.queue_max = SIGNER_QUEUE;
    o.batch_max = 1;
    o.run = run;
    return work_open(out, &o);
}
