/* A command that signs a certificate: step-ca, Vault, or a hardware module. It reads the request
 * (PEM) from standard input and prints the certificate and its chain (PEM). The identity that the
 * certificate must have is in its environment, because names in a request are not to be trusted:
 *
 *     FEDLORA_URI=fl://clinics/client/north    the one URI name
 *     FEDLORA_ROLE=client  FEDLORA_ID=north  FEDLORA_FEDERATION=clinics
 *     FEDLORA_LIFE=2592000                     seconds
 *
 * It gets no other variable but PATH, HOME and those that begin with VAULT_, STEP or FEDLORA_, and
 * none of this process's descriptors but standard error. */
#ifndef COORDINATOR_SIGNER_COMMAND_H
#define COORDINATOR_SIGNER_COMMAND_H

#include "proto/certificate.h"

struct signer_command {
    const char *path;
    const struct certificate_order *order;
    const struct bytes *request; /* PEM */
    uint64_t timeout_ms;         /* then it is killed */
};
/* Appends what it has printed. ERR_MACHINE: it cannot be started, took too long, printed too much,
 * or ended with a status other than 0. Blocks. Any thread. */
err signer_command_run(struct bytes *out, const struct signer_command *command);

#endif
