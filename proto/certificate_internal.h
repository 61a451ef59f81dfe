/* Shared by proto/certificate*.c only, so that OpenSSL's types stay inside these files. */
#ifndef PROTO_CERTIFICATE_INTERNAL_H
#define PROTO_CERTIFICATE_INTERNAL_H

#include "proto/certificate.h"
#include "proto/rpc_tls.h"

/* ERR_MACHINE with the newest of OpenSSL's errors, whose queue is emptied. */
err certificate_failed(const char *what);
/* A request whose signature is good and whose key is of a known kind. */
err certificate_open_request(X509_REQ **out, const void *data, size_t size);
err certificate_describe(struct certificate_issued *out, X509 *cert);
int64_t certificate_time(const ASN1_TIME *time); /* since 1970; 0: malformed */

#endif
