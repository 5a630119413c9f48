-- The door for everybody, in any language: FCALL tidings_publish 1 NAMESPACE SUBJECT BODY [ID [HEADERS]]

local function check(s, subject, body, headers)
  if #subject > 255 or not string.match(subject, "^[!-)+%-/-=?-~][!-)+%-/-=?-~.]*$") or string.match(subject, '%.%.')
    or string.match(subject, '%.$') or string.match(subject, '^[.$]') then
    refuse('INVALID', 'this is no subject: dot-separated names of printable ASCII, without wildcards and spaces')
  end
  local inside = false
  for _, root in ipairs(split(s.roots, ' ')) do
    inside = inside or matches(root, subject)
  end
  if not inside then
    refuse('INVALID', subject .. ' is in none of the roots of the namespace: ' .. s.roots)
  end
  if size_of(subject, headers, body) > MAX_MESSAGE then
    refuse('INVALID', 'the message is larger than ' .. MAX_MESSAGE .. ' bytes')
  end
  local fine, decoded = pcall(cjson.decode, headers)
  if not fine or type(decoded) ~= 'table' then
    refuse('INVALID', 'the headers are no JSON object of strings')
  end
  for name, value in pairs(decoded) do
    if type(name) ~= 'string' or type(value) ~= 'string' then
      refuse('INVALID', 'the headers are no JSON object of strings')
    end
  end
end

redis.register_function{
  function_name = 'tidings_publish',
  callback = guarded(function(keys, args)
    if #keys ~= 1 or #args < 2 then
      refuse('INVALID', 'write: FCALL tidings_publish 1 NAMESPACE SUBJECT BODY [ID [HEADERS]]')
    end
    local s = begin(keys[1])
    local subject, body, id, headers = args[1], args[2], args[3] or '', args[4] or '{}'
    check(s, subject, body, headers)
    fall_due(s)
    local position
    if id == '' then
      position = append(s, subject, headers, body)
    else
      position = accept(s, subject, id, '', headers, body)[1]
    end
    finish(s)
    return position
  end),
}

-- KEYS[1] is the namespace; then the incarnation of a new one, '' if none is to be made; its roots, which are added to
-- what there is; the position that a new one begins behind. Answers incarnation, roots and layout as they are now.
redis.register_function{
  function_name = 'tidings_found',
  flags = {'allow-oom'},
  callback = guarded(function(keys, args)
    local meta = key(keys[1], 'meta')
    if redis.call('EXISTS', meta) == 0 then
      if args[1] == '' then
        return {}
      end
      redis.call('HSET', meta, 'incarnation', args[1], 'version', args[1], 'roots', '', 'last', args[3], 'layout', '1')
      redis.call('PUBLISH', key(keys[1], 'anew'), args[1]) -- who only waits for questions would not notice
    end
    local kept = redis.call('HGET', meta, 'roots')
    for _, root in ipairs(split(args[2], ' ')) do
      if not string.find(' ' .. kept .. ' ', ' ' .. root .. ' ', 1, true) then
        kept = kept == '' and root or kept .. ' ' .. root
        redis.call('HSET', meta, 'roots', kept)
      end
    end
    return redis.call('HMGET', meta, 'incarnation', 'roots', 'layout')
  end),
}

redis.register_function{
  function_name = 'tidings_release',
  flags = {'no-writes'},
  callback = function() return RELEASE end,
}
