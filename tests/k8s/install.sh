#!/bin/sh
# What the tests of the manifests need of the system: kubectl 1.25 or newer, or kustomize 4.5.7 or newer; and
# Prometheus 2.42 or newer with promtool, for the alerts and the dashboard.
# Does nothing where they are there. Installs them as root on CI; tells anyone else what to install.
set -eu

KUSTOMIZE=v5.5.0 # what kubectl 1.32 has inside

if ! command -v promtool >/dev/null 2>&1 || ! command -v prometheus >/dev/null 2>&1; then
    if [ "${CI:-}" != "true" ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "tests/k8s: prometheus is missing. Run: sudo apt-get install --no-install-recommends prometheus" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends prometheus
fi

minor=$(kubectl version --client 2>/dev/null | sed -n 's/.*v1\.\([0-9]*\)\..*/\1/p' | head -n 1) || minor=""
[ "${minor:-0}" -lt 25 ] || exit 0
if command -v kustomize >/dev/null 2>&1; then exit 0; fi

# Not every release has one that is new enough: the kubernetes-client of Debian 12 is 1.20.
packaged() {
    candidate=$(apt-cache policy kubernetes-client 2>/dev/null | sed -n 's/.*Candidate: 1\.\([0-9]*\)\..*/\1/p') || true
    [ "${candidate:-0}" -ge 25 ]
}

if [ "${CI:-}" != "true" ] || [ "$(id -u)" -ne 0 ]; then
    advice="Install one of them."
    if packaged; then advice="Run: sudo apt-get install --no-install-recommends kubernetes-client"; fi
    echo "tests/k8s: kubectl 1.25 or newer, or kustomize 4.5.7 or newer, is missing. $advice" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
if command -v apt-get >/dev/null 2>&1; then apt-get update -q; fi
if packaged; then
    apt-get install -q -y --no-install-recommends kubernetes-client
elif command -v go >/dev/null 2>&1; then
    GOBIN=/usr/local/bin GOFLAGS=-buildvcs=false go install "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE"
else
    echo "tests/k8s: no package of kubectl 1.25 or newer here, and no Go to build kustomize with." >&2
    exit 1
fi
