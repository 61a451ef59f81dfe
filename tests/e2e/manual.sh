#!/usr/bin/env bash
# Manual pages and completions: each option of each command is in its page and in the script for bash, the pages are
# correct for groff and mandoc, and bash, zsh and fish complete with the scripts. Shells that are missing are left out.
# Release only: the programs are tested under the sanitizers elsewhere.
set -euo pipefail
# shellcheck source=tests/support/e2e.sh
. "$(dirname "${BASH_SOURCE[0]}")/../support/e2e.sh"

pages=$work/share
for program in fedlora fedlorad; do "$programs/$program" --pages "$pages" || fail "$program --pages"; done
[ "$(stat -c %a "$pages/man/man8")" = 755 ] || fail "folders of pages are not for everybody"

# ---- nothing of --help is missing
check_options() { # PROGRAM SECTION COMMAND...
  local program=$1 section=$2 name flag page
  shift 2
  name=$program${*:+ $*}
  page=$pages/man/man$section/${name// /-}.$section
  [ -s "$page" ] || fail "$name has no page"
  local script=$pages/bash-completion/completions/$program
  "$programs/$program" "$@" --help >"$work/help"
  for flag in $(sed -nE 's/^  (-., |    )--([a-z0-9-]+).*/\2/p' "$work/help"); do
    grep -qF -- "\\-\\-${flag//-/\\-}" "$page" || fail "$name: the page has no --$flag"
    awk -v command="    '$*')" -v flag=" --$flag[ ']" '$0 == command { on = 1; next }
      on && /options=/ { found = match($0, flag); on = 0 } END { exit !found }' "$script" ||
      fail "$name: the completion of bash has no --$flag"
  done
}
commands_of() { sed -nE "s/^  ($1 )?([a-z-]+( [a-z-]+)?)  +.*/\2/p"; }
"$programs/fedlora" --help | commands_of fedlora >"$work/commands"
while read -r -a words; do check_options fedlora 1 "${words[@]}"; done <"$work/commands"
check_options fedlorad 8
"$programs/fedlorad" --help | sed -nE 's/^  fedlorad ([a-z-]+( [a-z-]+)?)  +.*/\1/p' >"$work/commands"
[ -s "$work/commands" ] || fail "fedlorad --help lists no command"
while read -r -a words; do check_options fedlorad 8 "${words[@]}"; done <"$work/commands"
"$programs/fedlorad" --sample | sed -nE 's/^(# )?([a-z_]+) =.*/\2/p' | while read -r key; do
  grep -qF "\\fB$key\\fR" "$pages/man/man5/fedlorad.ini.5" || fail "fedlorad.ini(5) has no $key"
done

# ---- the pages are correct
for page in "$pages"/man/man?/*; do
  if command -v groff >/dev/null; then
    groff -ww -man -Tutf8 -z "$page" 2>"$work/err" || fail_with "$work/err" "groff $page"
    [ ! -s "$work/err" ] || fail_with "$work/err" "groff warns of $page"
  fi
  if command -v mandoc >/dev/null; then mandoc -T lint -W warning "$page" || fail "mandoc: $page"; fi
done

# ---- the shells complete
completed() { # EXPECTED WORD...: the last word is the one under the cursor
  local expected=$1 found
  shift
  found=$(bash --norc -c '. "$1"; shift; complete -p "$1" >&2; compopt() { :; }
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); "_$1"; echo "${COMPREPLY[*]}"' - \
    "$pages/bash-completion/completions/$1" "$@" 2>"$work/err") || fail_with "$work/err" "bash: $*"
  [ "$found" = "$expected" ] || fail "bash completes \"$*\" to \"$found\", expected \"$expected\""
}
completed train fedlora tr
completed create fedlora run cr
completed --precision fedlora train --prec
completed bf16 fedlora train --precision b
completed bf16 fedlora train --precision = b
completed '' fedlora train --rank ''
completed "$pages/man" fedlora train --output "$pages/ma"
completed init fedlorad ca in
completed --check fedlorad --ch
if command -v fish >/dev/null; then
  completes() { fish --no-config -c ". $pages/fish/vendor_completions.d/$1.fish; complete -C '$2'"; }
  completes fedlora 'fedlora run cr' | grep -q '^create' || fail "fish does not complete a command"
  completes fedlora 'fedlora train --prec' | grep -q '^--precision' || fail "fish does not complete an option"
  completes fedlora 'fedlora train --precision b' | grep -q '^bf16' || fail "fish does not complete a value"
  completes fedlorad 'fedlorad --ch' | grep -q '^--check' || fail "fish does not complete an option of fedlorad"
fi
if command -v zsh >/dev/null; then
  for script in "$pages"/zsh/site-functions/*; do zsh -n "$script" || fail "zsh: $script"; done
fi

expect_refusal 2 "did you mean train?" "$programs/fedlora" --man trian
expect_refusal 2 "expected bash, zsh or fish" "$programs/fedlora" --completions tcsh
echo "every option has a page and completes"
