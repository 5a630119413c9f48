-- What became of deliveries, dead letters, and what people do to them.

-- A letter: subject, time, headers, body, first body or false, reason, failure, attempts, died, replay.
local BODY, FIRST, REASON, LETTER_FAILURE, LETTER_ATTEMPTS, DIED, LETTER_REPLAY = 4, 5, 6, 7, 8, 9, 10

local function give_up(s, group, members, copied)
  if redis.call('ZREM', group.leased, unpack(members)) < #members then
    redis.call('ZREM', group.ready, unpack(members)) -- a lease had ended, and nobody has taken it since
  end
  redis.call('HDEL', group.items, unpack(members))
  if copied then
    redis.call('HDEL', group.copies, unpack(members))
  end
  let_go(s, group)
end

local function park(s, group, member, item, behind)
  item[TOKEN], item[BEHIND] = '', behind
  keep_item(group, member, item)
  redis.call('ZREM', group.leased, member)
  redis.call('ZREM', group.ready, member)
  redis.call('ZADD', group.parked, member, member)
  let_go(s, group)
end

local function failed(item, failure)
  item[ATTEMPTS] = item[ATTEMPTS] + 1
  item[FAILURE] = failure
end

local function postpone(s, group, member, item, delay)
  item[TOKEN] = ''
  keep_item(group, member, item)
  redis.call('ZREM', group.leased, member)
  if delay > 0 then
    redis.call('ZREM', group.ready, member)
    redis.call('ZADD', group.delayed, precise(s.now + delay), member)
    s.bells[group.bell] = true -- who waits has to know the new time
  else
    give(s, group, tonumber(member))
    let_go(s, group)
  end
end

local function put_letter(s, group, member, letter)
  redis.call('HSET', group.letters, member, cmsgpack.pack(letter))
  redis.call('ZADD', group.dead, member, member)
  redis.call('ZADD', key(s.ns, 'dead'), member, member .. '/' .. group.name)
end

local function remove_letter(s, group, member)
  redis.call('HDEL', group.letters, member)
  redis.call('ZREM', group.dead, member)
  redis.call('ZREM', key(s.ns, 'dead'), member .. '/' .. group.name)
end

local function letter_of(group, member)
  local packed = redis.call('HGET', group.letters, member)
  return packed and cmsgpack.unpack(packed)
end

local function die(s, group, member, item, reason, failure, attempts)
  local entry = entry_of(s, group, member, item)
  if entry then
    put_letter(s, group, member, {
      entry[1], entry[2], entry[3], entry[4], entry[5] or false,
      reason, failure, tonumber(attempts), precise(s.now), item[REPLAY],
    })
  end
end

-- Those of the positions whose newest lease has the token are handled.
local function done(s, name, token, members)
  local group = groups_of(s).groups[name]
  local gone, copied = {}, false
  for place, packed in ipairs(group and redis.call('HMGET', group.items, unpack(members)) or {}) do
    local item = packed and packed ~= token and opened(packed)
    if packed == token or (item and item[TOKEN] == token) then
      gone[#gone + 1] = members[place]
      copied = copied or (item and item[COPIED] == 1)
    end
  end
  if #gone > 0 then
    give_up(s, group, gone, copied)
  end
end

-- what is handled, packed: group, token, positions, for each pull it came by; then, for each of the others: kind, group,
-- position, token, crashes before, delay (or what it is parked behind), failure, reason, attempts
offer('settle', {'allow-oom'}, function(s, args)
  for _, handled in ipairs(cmsgpack.unpack(args[3])) do
    done(s, unpack(handled))
  end
  for place = 4, #args, 9 do
    local kind, name, member, token, crashes, delay, failure, reason, attempts = unpack(args, place, place + 8)
    local group, item = held(s, name, member, token)
    if group then
      item[CRASHES], item[KEPT] = tonumber(crashes), 0
      if kind == 'dead' then
        die(s, group, member, item, reason, failure, attempts)
        give_up(s, group, {member}, item[COPIED] == 1)
      elseif kind == 'park' then
        park(s, group, member, item, tonumber(delay))
      else
        if kind == 'retry' then
          failed(item, failure)
        else
          item[RETURNED] = item[RETURNED] + 1
        end
        postpone(s, group, member, item, tonumber(delay))
      end
    end
  end
  return 0
end)

-- group, position, token, crashes before, delay, failure ('' for none): its attempts
offer('keep', {'allow-oom'}, function(s, args)
  local group, item = held(s, args[3], args[4], args[5])
  if not group then
    refuse('CONFLICT', 'message ' .. args[4] .. ' is no longer in the hands of this reader')
  end
  item[CRASHES], item[KEPT] = tonumber(args[6]), s.now + tonumber(args[7])
  if args[8] ~= '' then
    failed(item, args[8])
  end
  keep_item(group, args[4], item)
  return item[ATTEMPTS]
end, true)

-- group, after, limit
offer('parked', {'no-writes'}, function(s, args)
  local group, found = group_of(s, args[3]), {}
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', group.parked, '(' .. args[4], '+inf', 'LIMIT', 0, args[5])) do
    local entry = entry_of(s, group, member, item_of(group, member))
    if entry then
      found[#found + 1] = {tonumber(member), unpack(entry, 1, BODY)}
    end
  end
  return found
end)

-- group, positions
offer('unpark', {'allow-oom'}, function(s, args)
  local group, back = group_of(s, args[3]), 0
  for place = 4, #args do
    if redis.call('ZREM', group.parked, args[place]) == 1 then
      give(s, group, tonumber(args[place]))
      back = back + 1
    end
  end
  let_go(s, group)
  return back
end, true)

-- The letter that was read, unless it is gone or has died anew since.
local function same_letter(s, name, member, died)
  local group = groups_of(s).groups[name]
  local letter = group and letter_of(group, member)
  if letter and tonumber(letter[DIED]) == tonumber(died) then
    return group, letter
  end
end

-- group ('' for all), after, limit, bytes
offer('letters', {'no-writes'}, function(s, args)
  local after, limit, room = '(' .. args[4], tonumber(args[5]), tonumber(args[6])
  local all, group = args[3] == '', groups_of(s).groups[args[3]]
  local from = all and key(s.ns, 'dead') or group and group.dead
  local found, size, last, start = {}, 0, nil, 0
  while from do
    local page = redis.call('ZRANGEBYSCORE', from, after, '+inf', 'LIMIT', start, limit)
    for _, name in ipairs(page) do
      local member = string.match(name, '^%d+')
      if member ~= last and (#found >= limit or size > room) then
        return found
      end
      local owner = all and groups_of(s).groups[string.match(name, '/(.*)$')] or group
      local letter = owner and letter_of(owner, member)
      if letter then
        size = size + #letter[BODY] + #(letter[FIRST] or '')
        last = member
        found[#found + 1] = {owner.name, tonumber(member), unpack(letter)}
      end
    end
    start = start + #page
    if #page < limit then
      break
    end
  end
  return found
end)

-- for each: group, position, died
offer('redrive', {'allow-oom'}, function(s, args)
  local moved = 0
  for place = 3, #args, 3 do
    local member = args[place + 1]
    local group, letter = same_letter(s, args[place], member, args[place + 2])
    if group then
      local replay = letter[LETTER_REPLAY]
      if replay == '' and letter[REASON] == 'expired' then
        replay = 'redrive'
      end
      redis.call('HSET', group.copies, member, cmsgpack.pack({unpack(letter, 1, FIRST)}))
      keep_item(group, member, new_item(replay, true))
      give(s, group, tonumber(member))
      remove_letter(s, group, member)
      moved = moved + 1
    end
  end
  return moved
end, true)

-- for each: group, position, died
offer('discard', {'allow-oom'}, function(s, args)
  local gone = 0
  for place = 3, #args, 3 do
    local member = args[place + 1]
    local group, letter = same_letter(s, args[place], member, args[place + 2])
    if group then
      remove_letter(s, group, member)
      if group.ordered then
        redis.call('HSET', group.copies, member, cmsgpack.pack({unpack(letter, 1, FIRST)}))
        keep_item(group, member, new_item(letter[LETTER_REPLAY], true, true))
        give(s, group, tonumber(member))
      end
      gone = gone + 1
    end
  end
  return gone
end, true)

-- group, position, died, body as it was read, new body
offer('amend', {'allow-oom'}, function(s, args)
  local group, letter = same_letter(s, args[3], args[4], args[5])
  if not group or letter[BODY] ~= args[6] then
    return 0
  end
  letter[FIRST] = letter[FIRST] or letter[BODY]
  letter[BODY] = args[7]
  put_letter(s, group, args[4], letter)
  return 1
end, true)

-- for each: group, position, then the letter; its first body is '' with the flag before it '0'
offer('bury', {'allow-oom'}, function(s, args)
  local stored = 0
  for place = 3, #args, 13 do
    group_of(s, args[place])
  end
  for place = 3, #args, 13 do
    local name, member, subject, time, headers, body, has_first, first, reason, failure, attempts, died, replay =
      unpack(args, place, place + 12)
    local group = group_of(s, name)
    if not letter_of(group, member) then
      put_letter(s, group, member, {
        subject, time, headers, body, has_first == '1' and first, reason, failure, tonumber(attempts), died, replay,
      })
      stored = stored + 1
    end
  end
  return stored
end, true)

-- group, id, then for each: position, subject, time, headers, body
offer('replay', {'allow-oom'}, function(s, args)
  local group, given = group_of(s, args[3]), 0
  for place = 5, #args, 5 do
    local member, subject, time, headers, body = unpack(args, place, place + 4)
    if not place_of(group, tonumber(member)) and redis.call('HEXISTS', group.letters, member) == 0 then
      local copied = not logged(s, tonumber(member))
      if copied then
        redis.call('HSET', group.copies, member, cmsgpack.pack({subject, time, headers, body, false}))
      end
      keep_item(group, member, new_item(args[4], copied))
      give(s, group, tonumber(member))
      given = given + 1
    end
  end
  return given
end, true)
