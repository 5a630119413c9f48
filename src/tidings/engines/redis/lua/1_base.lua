-- What every function stands on: keys, the state of one call, and how functions are registered.
--
-- All keys of a namespace carry the same hash tag. A call reads the namespace's record once, and rings the bells of
-- whoever waits once, at its end. Scripts run one at a time and are written to the append-only file as one unit, so
-- every function here happens wholly or not at all.

local MAX_MESSAGE = 1024 * 1024
local WINDOW = 120000 -- milliseconds for which a pair of subject and id stays known
local ANSWERED = 60000 -- milliseconds for which the answer of a call that must not happen twice is kept
local SHARE = 0.9 -- part of a limited store that publishers may fill
local STEP = 1000 -- entries that one call looks at

local function key(ns, name)
  return '{' .. ns .. '}:' .. name
end

local function text(number)
  return string.format('%.0f', number)
end

local function precise(seconds)
  return string.format('%.6f', seconds)
end

local function refuse(code, words)
  error({err = 'TIDINGS_' .. code .. ' ' .. words})
end

local function split(joined, separator)
  local parts = {}
  for part in string.gmatch(joined, '[^' .. separator .. ']+') do
    parts[#parts + 1] = part
  end
  return parts
end

local function matches(filter, subject)
  if filter == subject then
    return true
  end
  local wanted, got = split(filter, '.'), split(subject, '.')
  for place, part in ipairs(wanted) do
    if part == '>' then
      return #got >= place
    end
    if got[place] == nil or (part ~= '*' and part ~= got[place]) then
      return false
    end
  end
  return #wanted == #got
end

-- The state of one call. `incarnation` is what the caller knows; an emptied server has another one, or none.
local function begin(ns, incarnation)
  local found = redis.call('HMGET', key(ns, 'meta'), 'incarnation', 'version', 'roots')
  if not found[1] or (incarnation and incarnation ~= found[1]) then
    refuse('GONE', found[1] or '')
  end
  local time = redis.call('TIME')
  return {
    ns = ns,
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000,
    version = found[2],
    roots = found[3],
    bells = {}, -- to be rung at the end of the call
    quiet = {}, -- those that need not be rung: something was there before
    bytes = 0,
    subjects = {},
  }
end

-- What a call has counted is written down, and the bells are rung.
local function finish(s)
  if s.bytes ~= 0 then
    redis.call('HINCRBY', key(s.ns, 'meta'), 'bytes', s.bytes)
  end
  for subject, count in pairs(s.subjects) do
    if redis.call('HINCRBY', key(s.ns, 'subjects'), subject, count) <= 0 then
      redis.call('HDEL', key(s.ns, 'subjects'), subject)
    end
  end
  s.bytes, s.subjects = 0, {}
  for bell in pairs(s.bells) do
    redis.call('PUBLISH', key(s.ns, bell), '')
  end
end

-- Answers what was refused as a plain error, without the place in the script that a raised one carries.
local function guarded(act)
  return function(keys, args)
    local fine, answer = pcall(act, keys, args)
    if fine then
      return answer
    end
    local words = type(answer) == 'table' and answer.err or tostring(answer)
    local ours = string.find(words, 'TIDINGS_', 1, true)
    if ours then
      return redis.error_reply(string.sub(words, ours))
    end
    error(answer)
  end
end

-- Registers `tidings_NAME`: KEYS[1] is the namespace, then come a name for the call, which is given back with the
-- answer, and the incarnation. With `once`, a call that is repeated under its name happens once.
local function offer(name, flags, act, once)
  local function call(keys, args)
    local s = begin(keys[1], args[2])
    local mark = once and key(s.ns, 'call:' .. args[1])
    local kept = mark and redis.call('GET', mark)
    if kept then
      return {args[1], cmsgpack.unpack(kept)}
    end
    local answer = act(s, args)
    finish(s)
    if mark then
      redis.call('SET', mark, cmsgpack.pack(answer), 'PX', ANSWERED)
    end
    return {args[1], answer}
  end
  redis.register_function{function_name = 'tidings_' .. name, callback = guarded(call), flags = flags}
end
