#include "common/errors.h"

#include <utility>

#include "common/bytes.h"

namespace mempool {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out.push_back('\\');
    if (c == '\n') {
      out += "\\n";
    } else {
      out.push_back(c);
    }
  }
  return out + "\"";
}

std::string advice(OomReason reason) {
  switch (reason) {
    case OomReason::pool_limit:
      return "Free tensors of this pool, or raise its limit with pool.set_limit().";
    case OomReason::device_limit:
      return "Free tensors, or raise the limit with mempool.set_limit().";
    case OomReason::shared_limit:
      return "Free tensors in any of these processes, or raise their limit with mempool.set_limit(..., shared=True).";
    case OomReason::ledger_full:
      return "What this process holds cannot be counted among those that share a limit: there are too many of them, or "
             "it can open no more files. End some of either.";
    case OomReason::backend_refused:
      return "The system has no more memory to give: free tensors, or set a limit so that one pool fails before the "
             "machine does.";
    case OomReason::metadata_refused:
      return "The system has no memory left even for the allocator's own records.";
    case OomReason::size_overflow:
      return "The size is larger than any address space: check the shape.";
  }
  return "";
}

// The last line is for machines: `oom_info` reads it back, also from an exception that crossed a process.
std::string fields(const OomInfo& info) {
  std::string out = "[mempool.oom reason=" + std::string(to_string(info.reason)) + " device=" + info.device +
                    " requested=" + std::to_string(info.requested) + " allocated=" + std::to_string(info.allocated) +
                    " limit=" + (info.limit == kNoLimit ? "none" : std::to_string(info.limit)) +
                    " held=" + std::to_string(info.held) + " largest_free=" + std::to_string(info.largest_free) +
                    " pressure_calls=" + std::to_string(info.pressure_calls);
  if (info.reason == OomReason::shared_limit) out += " held_by_all=" + std::to_string(info.held_by_all);
  if (info.outside > 0) out += " outside=" + std::to_string(info.outside);
  if (info.callback_error_id != 0) out += " callback_error=" + std::to_string(info.callback_error_id);
  if (!info.capture.empty()) out += " capture=" + quoted(info.capture);
  return out + " pool=" + quoted(info.pool) + "]";
}

std::string describe(const OomInfo& info) {
  std::string out = "mempool: out of memory on " + info.device + " in pool '" + info.pool + "': tried to allocate " +
                    format_bytes(info.requested) + "; " + format_bytes(info.allocated) + " in use";
  if (info.limit != kNoLimit) {
    out += info.reason == OomReason::device_limit   ? ", device limit "
           : info.reason == OomReason::shared_limit ? ", limit of all processes that share it "
                                                    : ", limit ";
    out += format_bytes(info.limit);
  }
  if (info.reason == OomReason::shared_limit) out += ", of which they hold " + format_bytes(info.held_by_all);
  out += "; the device holds " + format_bytes(info.held);
  if (info.outside > 0) out += " and torch's other allocator " + format_bytes(info.outside) + ", which counts as well";
  out += ", largest free range " + format_bytes(info.largest_free) + ". ";
  if (!info.device_failure.empty()) {
    out += "The device has failed: " + info.device_failure +
           ". What it was using is never handed out again: end this process.";
  } else if (!info.source.empty()) {
    out += "The allocator that gives " + info.source + " its memory gave none" +
           (info.source_refusal.empty() ? "" : ": " + info.source_refusal) + ". Free tensors of that pool, or others.";
  } else {
    if (!info.source_refusal.empty()) out += "What was asked said: " + info.source_refusal + ". ";
    out += advice(info.reason);
  }
  // Libraries that search for a batch size that fits (accelerate, lightning) recognize a CPU's error by these words.
  if (info.device == "cpu") out += " (DefaultCPUAllocator: can't allocate memory)";
  if (!info.callback_error.empty()) out += " A pressure callback raised " + info.callback_error + ".";
  if (!info.help.empty()) out += " " + info.help;
  if (!info.capture.empty()) out += " A snapshot of this moment is written to " + info.capture + ".";
  return out + "\n" + fields(info);
}

}  // namespace

const char* to_string(OomReason reason) {
  switch (reason) {
    case OomReason::pool_limit:
      return "pool_limit";
    case OomReason::device_limit:
      return "device_limit";
    case OomReason::shared_limit:
      return "shared_limit";
    case OomReason::ledger_full:
      return "ledger_full";
    case OomReason::backend_refused:
      return "backend_refused";
    case OomReason::metadata_refused:
      return "metadata_refused";
    case OomReason::size_overflow:
      return "size_overflow";
  }
  return "unknown";
}

OutOfMemory::OutOfMemory(OomInfo info) : info_(std::move(info)), message_(describe(info_)) {}

}  // namespace mempool
