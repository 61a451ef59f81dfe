/* OpenSSL's headers. They have a type called ERR_STATE (err.h: the error queue), which nobody uses
 * and which must not meet ours: it gets another name here. */
#ifndef PROTO_RPC_OPENSSL_H
#define PROTO_RPC_OPENSSL_H

#define ERR_STATE openssl_err_state
#include <openssl/conf.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#undef ERR_STATE

#endif
