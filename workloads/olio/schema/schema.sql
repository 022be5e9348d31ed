-- The site's tables. Names and columns follow Olio; persons and events are referenced by number, not by name, which
-- makes keys small and spares the pages a join. Foreign keys are left to the application, as bulk loads pay for each.
-- Reloading starts from here, so every table is dropped first.

SET NAMES utf8mb4;

DROP TABLE IF EXISTS COMMENTS_RATING, SOCIALEVENTTAG_SOCIALEVENT, SOCIALEVENTTAG, PERSON_SOCIALEVENT, PERSON_PERSON,
  SOCIALEVENT, PERSON, ADDRESS, ID_GEN;

CREATE TABLE ADDRESS (
  addressid INT UNSIGNED NOT NULL AUTO_INCREMENT,
  street1 VARCHAR(55) NOT NULL,
  street2 VARCHAR(55) NOT NULL DEFAULT '',
  city VARCHAR(55) NOT NULL,
  state VARCHAR(25) NOT NULL,
  zip VARCHAR(12) NOT NULL,
  country VARCHAR(55) NOT NULL,
  latitude DECIMAL(9, 6) NOT NULL,
  longitude DECIMAL(9, 6) NOT NULL,
  PRIMARY KEY (addressid),
  KEY address_zip (zip)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE PERSON (
  userid INT UNSIGNED NOT NULL AUTO_INCREMENT,
  username VARCHAR(25) CHARACTER SET ascii COLLATE ascii_general_ci NOT NULL,
  password VARCHAR(110) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  firstname VARCHAR(25) NOT NULL,
  lastname VARCHAR(25) NOT NULL,
  email VARCHAR(90) NOT NULL,
  telephone VARCHAR(25) NOT NULL,
  imageurl VARCHAR(40) CHARACTER SET ascii NOT NULL,
  imagethumburl VARCHAR(40) CHARACTER SET ascii NOT NULL,
  summary VARCHAR(2500) NOT NULL,
  timezone VARCHAR(40) NOT NULL,
  ADDRESS_addressid INT UNSIGNED NOT NULL,
  PRIMARY KEY (userid),
  UNIQUE KEY person_username (username)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

-- One row per direction, as in Olio: "person has friend"; is_accepted = 0 is an invitation that friend sent to person.
CREATE TABLE PERSON_PERSON (
  person_userid INT UNSIGNED NOT NULL,
  friend_userid INT UNSIGNED NOT NULL,
  is_accepted TINYINT UNSIGNED NOT NULL,
  PRIMARY KEY (person_userid, friend_userid),
  KEY friends (friend_userid, is_accepted)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE SOCIALEVENT (
  socialeventid INT UNSIGNED NOT NULL AUTO_INCREMENT,
  title VARCHAR(100) NOT NULL,
  summary VARCHAR(100) NOT NULL,
  description VARCHAR(500) NOT NULL,
  submitter_userid INT UNSIGNED NOT NULL,
  ADDRESS_addressid INT UNSIGNED NOT NULL,
  totalscore INT UNSIGNED NOT NULL DEFAULT 0,
  numberofvotes INT UNSIGNED NOT NULL DEFAULT 0,
  imageurl VARCHAR(40) CHARACTER SET ascii NOT NULL,
  imagethumburl VARCHAR(40) CHARACTER SET ascii NOT NULL,
  literatureurl VARCHAR(40) CHARACTER SET ascii NOT NULL,
  telephone VARCHAR(25) NOT NULL,
  timezone VARCHAR(40) NOT NULL,
  eventtimestamp DATETIME NOT NULL,
  createdtimestamp DATETIME NOT NULL,
  disabled TINYINT UNSIGNED NOT NULL DEFAULT 0,
  PRIMARY KEY (socialeventid),
  KEY event_upcoming (disabled, eventtimestamp),
  KEY event_created (disabled, createdtimestamp),
  KEY event_submitter (submitter_userid, createdtimestamp)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE PERSON_SOCIALEVENT (
  userid INT UNSIGNED NOT NULL,
  socialeventid INT UNSIGNED NOT NULL,
  PRIMARY KEY (socialeventid, userid),
  KEY attended (userid)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE SOCIALEVENTTAG (
  socialeventtagid INT UNSIGNED NOT NULL AUTO_INCREMENT,
  tag VARCHAR(30) NOT NULL,
  refcount INT UNSIGNED NOT NULL,
  PRIMARY KEY (socialeventtagid),
  UNIQUE KEY tag_name (tag),
  KEY tag_cloud (refcount, tag)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE SOCIALEVENTTAG_SOCIALEVENT (
  socialeventtagid INT UNSIGNED NOT NULL,
  socialeventid INT UNSIGNED NOT NULL,
  PRIMARY KEY (socialeventtagid, socialeventid),
  KEY tags_of_event (socialeventid)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE COMMENTS_RATING (
  commentid INT UNSIGNED NOT NULL AUTO_INCREMENT,
  userid INT UNSIGNED NOT NULL,
  socialeventid INT UNSIGNED NOT NULL,
  comments VARCHAR(2500) NOT NULL,
  ratings TINYINT UNSIGNED NOT NULL,
  created_at DATETIME NOT NULL,
  updated_at DATETIME NULL,
  PRIMARY KEY (commentid),
  KEY comments_of_event (socialeventid, commentid)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

CREATE TABLE ID_GEN (
  gen_key VARCHAR(20) NOT NULL,
  gen_value INT UNSIGNED NOT NULL,
  PRIMARY KEY (gen_key)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;
