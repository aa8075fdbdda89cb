# shellcheck shell=bash
# Sourced by the launchers.

usage() { # prints the comment at the top of a launcher
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

mistake() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Sets the variable of each --NAME=VALUE in "$@", `dry_run`, and `command` to what follows `--`.
# $1: the known names.
parse() {
  local known=" $1 " word flag
  shift
  dry_run=''
  while (($#)); do
    word=$1
    shift
    case $word in
      --) break ;;
      --help) usage && exit ;;
      --dry_run) dry_run=yes ;;
      --*=*)
        flag=${word%%=*}
        flag=${flag#--}
        [[ $known == *" $flag "* ]] || mistake "unknown flag --$flag; --help shows which there are"
        [[ ${word#*=} ]] || mistake "--$flag is empty; leave it out or give a value"
        printf -v "$flag" %s "${word#*=}"
        ;;
      *) mistake "$word: flags are --NAME=VALUE, the command comes after --" ;;
    esac
  done
  (($#)) || mistake "no command; give it after --, as: $0 ... -- python -m prompt_tuning.train ..."
  command=("$@")
}

needs() { # $1: a flag
  [[ ${!1} ]] || mistake "--$1 is missing; --help shows what it is"
}

is_count() { # $1: a flag
  [[ ${!1} =~ ^[1-9][0-9]{0,4}$ ]] || mistake "--$1=${!1}: must be a number from 1 to 99999"
}

quoted() { # "$@" in one line, as a shell reads it
  local word space=''
  for word; do
    if [[ ! $word || $word == *[!A-Za-z0-9_./:=@%+,-]* ]]; then
      # shellcheck disable=SC2001 # the quotes of ${//} differ between versions of bash
      word="'$(sed "s/'/'\\\\''/g" <<<"$word")'"
    fi
    printf '%s%s' "$space" "$word"
    space=' '
  done
}

execute() { # "$@", or with --dry_run what it is
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# Runs the command of "$@" on a TPU, which --type creates first, in an installed copy of this
# checkout's last commit. $1: the workers; $2: a flag for the command, or nothing.
on_tpu() {
  local workers=$1 more=$2 name='' zone='' project='' type='' version='' place root
  local archive=prompt-tuning.tar.gz
  shift 2
  parse "name zone project type version" "$@"
  needs name
  needs zone
  [[ ! $type ]] || needs version
  place=(--zone="$zone" ${project:+--project="$project"})
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  if [[ $type ]]; then
    execute gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
      --accelerator-type="$type" --version="$version"
  fi
  execute git -C "$root" archive --prefix=prompt-tuning/ --output="${TMPDIR:-/tmp}/$archive" HEAD
  execute gcloud compute tpus tpu-vm scp "${TMPDIR:-/tmp}/$archive" "$name:$archive" \
    "${place[@]}" --worker="$workers"
  # The images of TPU VMs have Python 3.10; uv brings a newer one.
  there "tar -xzf $archive && cd prompt-tuning && python3 -m pip install --quiet uv &&" \
    "python3 -m uv venv --quiet --allow-existing --python=3.11 .venv &&" \
    "python3 -m uv pip install --quiet --python=.venv --editable '.[tpu]'"
  there "cd prompt-tuning && . .venv/bin/activate && exec $(quoted "${command[@]}" ${more:+"$more"})"
}

there() { # for `on_tpu`: a shell command on its workers
  execute gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$workers" --command="$*"
}
